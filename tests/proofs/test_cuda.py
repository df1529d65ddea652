"""The product on an NVIDIA GPU: the numbers of the CPU and of the recordings, graphs that speak as plain steps do, and
a decode loop in which the host neither waits nor allocates.

    scripts/proof tests/proofs/test_cuda.py

Everything is compared in float32 without TF32 unless a test says otherwise. PROOF_DEVICE=cpu tries the proofs
themselves where there is no GPU; those that look at CUDA's own counters need one.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stepaudio import device
from stepaudio.bench.folders import llm_sizes
from stepaudio.encoder.paraformer import load_linguistic
from stepaudio.llm import generate
from stepaudio.llm.attention import KeyValueCache
from stepaudio.llm.fused import FusedLayers
from stepaudio.llm.generate import SpeechLM
from stepaudio.llm.layers import LayersMaker, PlainLayers
from stepaudio.llm.loading import load_step1
from stepaudio.llm.model import Step1ForCausalLM
from stepaudio.llm.network import Decoder, Dimensions
from stepaudio.llm.sampling import SpeechHead
from stepaudio.llm.step import DecodeState, Step, StepWeights
from stepaudio.loading import Engine, load_engine
from stepaudio.prompts import SpeechTokenizer
from stepaudio.settings import Settings
from stepaudio.tiny.llm import write_llm
from stepaudio.tiny.vocoder import write_vocoder
from stepaudio.tokens import GROUP, SpeechVocabulary
from stepaudio.types import Reference, SamplingParams
from stepaudio.vocoder.bigvgan import BigVGAN, without_filters
from stepaudio.vocoder.vocoder import FlowOrder, load_vocoder
from stepaudio.vocoder.weights import fill, hift_names
from stepaudio.weights import choose_weights
from tests.conftest import ROOT, voice
from tests.test_llm_generate import GREEDY, Tiny, different_prompts
from tests.test_vocoder_bigvgan import network
from tests.test_vocoder_hift import phase_as_recorded
from tests.vocoder_recordings import MEL, SOUND, STAGE, Recordings, assert_close, speech, voice_of

pytestmark = pytest.mark.proof

CPU = torch.device("cpu")
SAMPLED = SamplingParams()
NUCLEUS = SamplingParams(temperature=1.2, top_k=0, top_p=0.8, repetition_rule=False)
FRAMES_OFF, LOGITS_OFF = 1e-4, 2e-4
"""How far the encoder's frames and the language model's logits may be from the recorded ones, as on the CPU."""
SPOKEN_TEXT = "the words that it shall speak now"


@pytest.fixture(scope="module")
def gpu() -> torch.device:
    """The device that is put to the proof."""
    wanted = os.environ.get("PROOF_DEVICE", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no usable GPU")
    return device.choose(wanted).device


@pytest.fixture(scope="module")
def cuda(gpu: torch.device) -> torch.device:
    if gpu.type != "cuda":
        pytest.skip("the counters of CUDA are looked at")
    return gpu


@pytest.fixture(autouse=True)
def exact(gpu: torch.device) -> Iterator[None]:
    """Full float32, and no gradients, as the product runs."""
    with device.without_tf32(gpu), torch.inference_mode():
        yield


# The recordings


class RecordingsOn(Recordings):
    """The recordings and their networks on a device."""

    def __init__(self, conformance: Path, place: torch.device) -> None:
        super().__init__(conformance)
        self.tensors = {name: tensor.to(place) for name, tensor in self.tensors.items()}
        self.flow, self.hift = self.flow.to(place), self.hift.to(place)


@pytest.fixture(scope="module")
def recorded(conformance: Path, gpu: torch.device) -> RecordingsOn:
    return RecordingsOn(conformance, gpu)


def test_the_flow_agrees_with_the_recording(recorded: RecordingsOn) -> None:
    conditions = recorded.conditions()
    assert_close(conditions[..., :80], recorded["out.mu"], STAGE)
    mel = recorded.flow.decoder(recorded.noise(), conditions, steps=10)
    assert_close(mel[:, 2 * recorded.prompt_rows :].transpose(1, 2), recorded["out.mel"], MEL)


def test_hift_agrees_with_the_recording(recorded: RecordingsOn, gpu: torch.device) -> None:
    hift, f0 = recorded.hift, recorded["out.f0"]
    assert_close(hift.f0_predictor(recorded["out.mel"]), f0, STAGE)
    phase = phase_as_recorded(f0.cpu(), torch.float32).to(gpu)
    assert_close(hift.m_source.mix(phase, f0, recorded.source_noise()), recorded["out.source"], STAGE)
    assert_close(hift.m_source(f0, recorded.source_noise()), recorded["out.source"], 1e-3)
    assert_close(hift.source_spectrum(recorded["out.source"]), recorded["out.s_stft"], STAGE)
    assert_close(hift.spectrum(recorded["out.mel"], recorded["out.s_stft"]), recorded["out.hift_post"], STAGE)
    assert_close(hift.samples(recorded["out.hift_post"]), recorded["out.wav"], SOUND)


def test_bigvgan_agrees_with_the_recording(conformance: Path, gpu: torch.device) -> None:
    vectors = load_file(conformance / "vocoder" / "bigvgan.safetensors")
    state = {key.removeprefix("state."): value for key, value in vectors.items() if key.startswith("state.")}
    bigvgan: BigVGAN = network(64)
    fill(bigvgan, hift_names(without_filters(state, Path("hift.pt"))), Path("hift.pt"))
    bigvgan.to(gpu)
    assert_close(bigvgan(vectors["in.mel"].to(gpu)).cpu(), vectors["out.wav"].reshape(1, -1), SOUND)


def test_the_linguistic_codes_are_the_recorded_ones(conformance: Path, gpu: torch.device) -> None:
    """Also where TF32 is on for everything else: the encoder keeps it away from itself."""
    folder = conformance / "paraformer"
    encoder = load_linguistic(folder / "model", folder / "centroids.npy", device=gpu)
    told = json.loads((folder / "cases.json").read_text(encoding="utf-8"))
    waves = {
        key.removesuffix("_pcm16"): array.astype(np.float32) / 32768 * np.float32(told["gain"])
        for key, array in np.load(folder / "waves.npz").items()
    }
    expected = np.load(folder / "expected.npz")
    assert len(told["cases"]) == 30
    for tf32 in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        for case in told["cases"]:
            samples = waves[case["wave"]][case["offset"] : case["offset"] + case["length"]]
            frames = encoder.frames(samples)
            np.testing.assert_allclose(frames, expected[f"{case['name']}.enc"], atol=FRAMES_OFF, rtol=0)
            np.testing.assert_array_equal(encoder.encode(samples), expected[f"{case['name']}.vq02"])


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_language_models_logits_are_the_recorded_ones(conformance: Path, gpu: torch.device, name: str) -> None:
    """Of the whole prompt at once, and of the last of its ids fed one by one to the step."""
    folder = conformance / "step1_lm" / name
    model = load_step1(folder, gpu, torch.float32)
    vectors = {key: torch.from_numpy(array) for key, array in np.load(folder / "vectors.npz").items()}
    ids = vectors["input_ids"].to(gpu)
    logits = model(ids).logits
    torch.testing.assert_close(logits.cpu(), vectors["logits"], atol=LOGITS_OFF, rtol=0)
    known, length, size = ids.shape[1] // 2, ids.shape[1], model.config.vocab_size
    state, step = _any_id(model, ids[0, :known].tolist(), length - known + 1, size)
    for place in range(known, length):
        state.newest[:] = ids[0, place]
        step.run(KeyValueCache.rounded(place + 1), 0)
        stepped = model.lm_head(state.normed)
        torch.testing.assert_close(stepped[0], logits[0, place], atol=LOGITS_OFF, rtol=0)


def _any_id(model: Step1ForCausalLM, prompt: list[int], draws: int, size: int) -> tuple[DecodeState, Step]:
    """Return a sequence that has read ``prompt``, and its step, which may draw any id of the vocabulary."""
    weights = StepWeights(model.model)
    state = DecodeState(weights, 1, len(prompt) + draws)
    hidden = model.model(torch.tensor([prompt], device=model.model.device), cache=state.cache)[0, -1]
    state.begin(0, prompt, hidden, torch.zeros(draws, dtype=torch.float64))
    head = SpeechHead(model.lm_head.weight, SpeechVocabulary(range(size), range(0), 3))
    return state, Step(weights, head, state, 1, SamplingParams(temperature=0.0, repetition_rule=False))


# The decode loop


class Speakers:
    """One language model on the CPU and on the GPU: there as the product has it, and in torch's operations alone."""

    def __init__(self, model: Step1ForCausalLM, vocabulary: SpeechVocabulary, gpu: torch.device) -> None:
        there = copy.deepcopy(model).to(gpu)
        self.here = SpeechLM(model, vocabulary)
        self.plain = SpeechLM(there, vocabulary, cuda_graphs=False, fused_kernels=False)
        self.graphs = SpeechLM(copy.deepcopy(there), vocabulary)


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory, gpu: torch.device) -> Speakers:
    tiny = Tiny(tmp_path_factory.mktemp("tiny"), 1)
    tiny.favour_end(2.5)
    return Speakers(tiny.model, tiny.vocabulary, gpu)


def said(lm: SpeechLM, params: SamplingParams, seeds: list[int]) -> list[tuple[list[int], int, str]]:
    prompts, caps = different_prompts(len(seeds)), [150, 50, 100][: len(seeds)]
    made = lm.generate_many(prompts, params, seeds=seeds, max_tokens=caps)
    return [(one.tokens.numbers.tolist(), one.new_ids, one.stopped) for one in made]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED, NUCLEUS])
def test_graphs_plain_steps_and_the_cpu_speak_the_same(speakers: Speakers, params: SamplingParams) -> None:
    """Across a bucket of positions, from one request to the next, and while rows end."""
    for seeds in ([1, 2, 3], [4, 5, 6]):
        expected = said(speakers.here, params, seeds)
        assert said(speakers.plain, params, seeds) == expected
        assert said(speakers.graphs, params, seeds) == expected


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_rows_of_a_batch_speak_what_each_would_alone(speakers: Speakers, params: SamplingParams) -> None:
    together = said(speakers.graphs, params, [7, 8, 9])
    for number, prompt in enumerate(different_prompts(3)):
        alone = speakers.graphs.generate(prompt, params, seed=7 + number, max_tokens=[150, 50, 100][number])
        assert (alone.tokens.numbers.tolist(), alone.new_ids, alone.stopped) == together[number]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_a_layer_of_the_real_width_speaks_as_on_the_cpu(
    tmp_path: Path, gpu: torch.device, params: SamplingParams
) -> None:
    write_llm(tmp_path, 5, llm_sizes(3072, 8192, 48, 4, 1))
    vocabulary = SpeechTokenizer.load(tmp_path / "tokenizer.model").vocabulary
    speakers = Speakers(load_step1(tmp_path, CPU, torch.float32), vocabulary, gpu)
    assert (speakers.graphs._layers is FusedLayers) == (gpu.type == "cuda"), "the kernels that are to be proved"
    expected = said(speakers.here, params, [1, 2])
    assert said(speakers.plain, params, [1, 2]) == expected
    assert said(speakers.graphs, params, [1, 2]) == expected


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_graphs_change_nothing_in_bfloat16_either(tmp_path: Path, gpu: torch.device, params: SamplingParams) -> None:
    write_llm(tmp_path, 5, llm_sizes(3072, 8192, 48, 4, 2))
    vocabulary = SpeechTokenizer.load(tmp_path / "tokenizer.model").vocabulary
    model = load_step1(tmp_path, gpu, torch.bfloat16)
    plain = SpeechLM(copy.deepcopy(model), vocabulary, cuda_graphs=False)
    graphs = SpeechLM(model, vocabulary)
    assert said(graphs, params, [1, 2]) == said(plain, params, [1, 2])


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("lengths", [[30], [2300], [5, 120, 31]])
def test_the_fused_layers_compute_what_the_plain_ones_do(
    cuda: torch.device, dtype: torch.dtype, atol: float, lengths: list[int]
) -> None:
    """In bfloat16 a state (of size about 1) is rounded at some forty places on its way, in another order each."""
    size = Dimensions(
        vocabulary=120, hidden=768, intermediate=1100, layers=2, heads=12, groups=2, norm_eps=1e-5, max_length=4096
    )
    with torch.inference_mode(mode=False):
        torch.manual_seed(1)
        decoder = Decoder(size).to(cuda, dtype).requires_grad_(False)
        head = SpeechHead(
            torch.randn(120, 768, device=cuda, dtype=dtype), SpeechVocabulary(range(10, 60), range(60, 120), 3)
        )
        weights = StepWeights(decoder)
    prompts = [torch.randint(4, 120, (length,)).tolist() for length in lengths]

    def states(layers: LayersMaker) -> tuple[torch.Tensor, torch.Tensor]:
        state = DecodeState(weights, len(lengths), max(lengths) + 20)
        for row, prompt in enumerate(prompts):
            hidden = decoder(torch.tensor([prompt], device=cuda), cache=state.cache.row(row))[0, -1]
            state.begin(row, prompt, hidden, torch.zeros(20, dtype=torch.float64))
        step = Step(weights, head, state, len(lengths), GREEDY, None, layers)
        seen = []
        for number in range(12):
            state.newest[:] = 10 + number  # the same ids for both, whatever they draw
            step.run(KeyValueCache.rounded(max(lengths) + number + 1), 0)
            seen.append(state.normed.float().clone())
        return torch.stack(seen), state.cache.cells

    (plain, cells), (fused, fused_cells) = states(PlainLayers), states(FusedLayers)
    torch.testing.assert_close(fused, plain, atol=atol, rtol=0)
    torch.testing.assert_close(fused_cells, cells, atol=atol, rtol=0)


def test_between_two_looks_the_host_neither_waits_nor_allocates(
    tmp_path: Path, cuda: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product's own loop: every wait is an error to torch, except where the loop looks at what was drawn."""
    write_llm(tmp_path, 5, llm_sizes(256, 512, 8, 2, 3))
    vocabulary = SpeechTokenizer.load(tmp_path / "tokenizer.model").vocabulary
    lm = SpeechLM(load_step1(tmp_path, cuda, torch.bfloat16), vocabulary)
    replays: list[None] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        replays.append(None)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)

    def speak(seed: int, most: int = 200) -> None:
        lm.generate(different_prompts(2)[1], SAMPLED, seed=seed, max_tokens=most)

    speak(0)
    taken: list[int] = []
    before: list[int] = []
    drawn, finite = DecodeState.drawn, generate._check_finite

    def allocations() -> int:
        return int(torch.cuda.memory_stats(cuda)["allocation.all.allocated"])

    def looking(state: DecodeState, rows: int, start: int, stop: int) -> list[list[int]]:
        torch.cuda.set_sync_debug_mode("default")
        if before:
            taken.append(allocations() - before[-1])
        result = drawn(state, rows, start, stop)
        before.append(allocations())
        torch.cuda.set_sync_debug_mode("error")
        return result

    def checking(state: DecodeState, rows: int) -> None:
        torch.cuda.set_sync_debug_mode("default")
        finite(state, rows)

    monkeypatch.setattr(DecodeState, "drawn", looking)
    monkeypatch.setattr(generate, "_check_finite", checking)
    replays.clear()
    try:
        one = torch.ones(1, device=cuda)
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchroniz"):
            one.item()
        torch.cuda.set_sync_debug_mode("default")
        speak(1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(replays) == 199, "one graph for every id but the first"
    assert len(taken) == 19
    assert set(taken) == {0}


# The vocoder and the whole


def test_the_vocoder_sounds_as_on_the_cpu_and_a_stream_is_as_long(tmp_path: Path, gpu: torch.device) -> None:
    write_vocoder(tmp_path, seed=0)
    here, there = load_vocoder(tmp_path, CPU), load_vocoder(tmp_path, gpu)
    mel, speaker = voice_of()
    prompt, tokens = speech(3, seed=1), speech(42)
    mels = [one.flow(tokens, prompt, mel, speaker, seed=7, steps=4) for one in (here, there)]
    assert_close(mels[1].cpu(), mels[0], MEL)
    sounds = [one.sound(mels[0], seed=7).samples for one in (here, there)]
    # The phase is a sum over f0, which makes much of its last digits.
    assert_close(torch.from_numpy(sounds[1]), torch.from_numpy(sounds[0]), MEL)
    stream = there.stream(prompt, mel, speaker, seed=7, steps=2)
    numbers = tokens.numbers
    pieces = [stream.push(numbers[begin : begin + GROUP]) for begin in range(0, len(numbers), GROUP)]
    assert sum(map(len, [*pieces, stream.finish()])) == len(sounds[0])


@pytest.mark.parametrize(("prompt", "spoken"), [(26, 10), (33, 20), (50, 37)])
def test_sounds_whose_scores_begin_amid_16_bytes_are_made_too(
    tmp_path: Path, gpu: torch.device, prompt: int, spoken: int
) -> None:
    """Lengths at which the scores over keys would not begin where fused attention can read them."""
    write_vocoder(tmp_path, seed=0)
    vocoder = load_vocoder(tmp_path, gpu)
    mel, speaker = voice_of()
    whole = vocoder.flow(speech(spoken), speech(prompt, seed=1), mel, speaker, seed=7, steps=2)
    stream = vocoder.stream(speech(prompt, seed=1), mel, speaker, seed=7, steps=2)
    pieces = [stream.push(speech(spoken).numbers), stream.finish()]
    assert 480 * whole.shape[-1] == sum(map(len, pieces)) == 2880 * spoken


def test_sounds_side_by_side_are_those_made_alone(tmp_path: Path, gpu: torch.device) -> None:
    write_vocoder(tmp_path, seed=0)
    vocoder = load_vocoder(tmp_path, gpu)
    mel, speaker = voice_of()
    orders = [FlowOrder(speech(groups, seed=groups), speech(3, seed=1), mel, speaker, groups) for groups in (4, 42, 7)]
    for order, made in zip(orders, vocoder.flow_many(orders, steps=4), strict=True):
        alone = vocoder.flow(order.tokens, order.prompt_tokens, mel, speaker, seed=order.seed, steps=4)
        assert_close(made, alone, MEL)


def test_a_stream_does_not_wait_behind_what_others_asked_of_the_gpu(tmp_path: Path, cuda: torch.device) -> None:
    write_vocoder(tmp_path, seed=0)
    vocoder = load_vocoder(tmp_path, cuda)
    mel, speaker = voice_of()

    def piece() -> np.ndarray:
        return vocoder.stream(speech(3, seed=1), mel, speaker, seed=7, steps=2).push(speech(10).numbers)

    expected = piece()  # kernels are loaded now, which waits for the whole device
    busy = torch.cuda.Event()
    torch.cuda._sleep(6_000_000_000)  # some three seconds of cycles
    busy.record()
    made = piece()
    assert not busy.query(), "the other work was over first"
    busy.synchronize()
    assert_close(torch.from_numpy(made), torch.from_numpy(expected), MEL)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory, gpu: torch.device) -> Iterator[Engine]:
    """The product on models/mini; in bfloat16 where there is a GPU, as its users have it."""
    folder = tmp_path_factory.mktemp("engine")
    where = {"cache_dir": folder / "cache", "data_dir": folder / "data", "device": gpu.type}
    settings = Settings(models_dir=ROOT / "models", weights="mini", **where)
    loaded = load_engine(choose_weights(settings), settings, device.choose(settings.device))
    yield loaded
    loaded.close()


def test_a_stream_and_a_clone_are_sound_and_equally_long(engine: Engine, gpu: torch.device) -> None:
    """The stream first: its graphs are captured in one thread while the vocoder works in another."""
    reference = Reference(voice(4.0), "the words of the recording")
    params = SamplingParams(seed=3)
    streamed = engine.pipeline.stream(reference, SPOKEN_TEXT, params, max_seconds=6.0).into(lambda piece: None)
    assert engine.pipeline._lm.device.type == engine.pipeline._vocoder.device.type == gpu.type
    cloned, again = (engine.pipeline.clone(reference, SPOKEN_TEXT, params, max_seconds=6.0) for _ in range(2))
    assert cloned.cache_hit, "the stream has encoded the reference already"
    for made in (cloned, again):
        assert np.array_equal(made.tokens.numbers, streamed.tokens.numbers)
    assert len(streamed.waveform.samples) == len(again.waveform.samples) == 2880 * again.tokens.groups
    assert 0.5 < again.waveform.seconds <= 6.0
    for made in (streamed, again):
        samples = made.waveform.samples
        assert np.isfinite(samples).all()
        assert 0.01 < np.abs(samples).max() <= 0.99
        assert np.sqrt(np.mean(samples**2)) > 1e-3


def test_sixteen_takes_are_sound_and_differ(engine: Engine) -> None:
    reference = Reference(voice(3.0), "the words of the recording")
    takes = engine.pipeline.takes(reference, SPOKEN_TEXT, 16, SamplingParams(seed=1), max_seconds=3.0)
    assert len({take.tokens.numbers.tobytes() for take in takes}) > 8
    for take in takes:
        assert np.isfinite(take.waveform.samples).all()
        assert np.abs(take.waveform.samples).max() > 0.01
