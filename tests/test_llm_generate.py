"""llm/generate.py: every sequence keeps the cycle, seeds decide, caps and stops are obeyed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.errors import Cancelled, GenerationError, InvalidInput
from stepaudio.llm.generate import Generation, SpeechLM
from stepaudio.llm.loading import load_step1
from stepaudio.llm.model import Step1ForCausalLM
from stepaudio.llm.network import Decoder
from stepaudio.llm.step import DecodeState, Step
from stepaudio.prompts import SpeechTokenizer
from stepaudio.tiny.llm import write_llm
from stepaudio.tokens import SpeechVocabulary
from stepaudio.types import SamplingParams
from tests.token_kit import obeys_cycle

CPU = torch.device("cpu")
PROMPT = list(range(330, 390))
GREEDY = SamplingParams(temperature=0.0)


class Tiny:
    """A random model and its vocabulary."""

    def __init__(self, folder: Path, seed: int, dtype: torch.dtype = torch.float32) -> None:
        write_llm(folder, seed)
        self.model: Step1ForCausalLM = load_step1(folder, CPU, dtype)
        self.vocabulary: SpeechVocabulary = SpeechTokenizer.load(folder / "tokenizer.model").vocabulary

    def lm(self, look_every: int | None = None) -> SpeechLM:
        return SpeechLM(self.model, self.vocabulary, look_every=look_every)

    def favour_end(self, at: float) -> None:
        """Give the end a logit near ``at``, by way of a component that every state has and no layer reads or writes."""
        decoder, carried = self.model.model, 1e-3
        decoder.embed_tokens.weight.data[:, 0] = carried
        for layer in decoder.layers:
            layer.self_attn.o_proj.weight.data[0] = layer.mlp.down_proj.weight.data[0] = 0.0
            layer.input_layernorm.weight.data[0] = layer.post_attention_layernorm.weight.data[0] = 0.0
        decoder.norm.weight.data[0] = 1 / carried
        self.model.lm_head.weight.data[:, 0] = 0.0
        self.model.lm_head.weight.data[self.vocabulary.end] = 0.0
        self.model.lm_head.weight.data[self.vocabulary.end, 0] = at


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("tiny"), 0)


def generate(lm: SpeechLM, seed: int = 0, max_tokens: int = 60, params: SamplingParams | None = None) -> Generation:
    return lm.generate(PROMPT, params or SamplingParams(), seed=seed, max_tokens=max_tokens)


@pytest.mark.parametrize("model_seed", [1, 2, 3])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=3.0, top_k=0), GREEDY])
def test_every_sequence_keeps_the_cycle(tmp_path: Path, model_seed: int, params: SamplingParams) -> None:
    lm = Tiny(tmp_path, model_seed).lm()
    for seed in range(4):
        result = generate(lm, seed, 63, params)
        assert obeys_cycle(result.tokens.numbers)
        assert len(result.tokens.numbers) == 5 * result.tokens.groups > 0
        drawn = result.new_ids - 1 if result.stopped == "end" else result.new_ids
        assert result.tokens.groups == drawn // 5
        if result.stopped == "end":
            assert drawn % 5 == 0


def test_the_same_seed_gives_the_same_speech_and_another_does_not(tiny: Tiny) -> None:
    first = generate(tiny.lm(), 7).tokens.numbers
    torch.manual_seed(99)
    assert np.array_equal(generate(tiny.lm(), 7).tokens.numbers, first)
    assert not np.array_equal(generate(tiny.lm(), 8).tokens.numbers, first)


def test_the_global_generator_is_left_alone(tiny: Tiny) -> None:
    before = torch.get_rng_state()
    generate(tiny.lm(), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("look_every", [1, 3, 10, 1000])
def test_looking_less_often_changes_nothing_but_the_clock(tmp_path: Path, look_every: int) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(3.0)
    results = [(generate(tiny.lm(every), seed, 200) for seed in range(5)) for every in (1, look_every)]
    stops = set()
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one.tokens.numbers, other.tokens.numbers)
        assert (one.new_ids, one.stopped) == (other.new_ids, other.stopped)
        stops.add(one.stopped)
    assert "end" in stops


def test_an_eager_end_comes_after_the_first_group_and_not_before(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(1e4)
    for params in (GREEDY, SamplingParams()):
        result = generate(tiny.lm(), 0, 60, params)
        assert (result.stopped, result.new_ids, result.tokens.groups) == ("end", 6, 1)


@pytest.mark.parametrize(("max_tokens", "new_ids", "groups"), [(5, 5, 1), (9, 6, 1), (10, 10, 2), (63, 61, 12)])
def test_the_cap_leaves_whole_groups(tmp_path: Path, max_tokens: int, new_ids: int, groups: int) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(-1e4)
    result = generate(tiny.lm(), 0, max_tokens)
    assert (result.stopped, result.new_ids, result.tokens.groups) == ("length", new_ids, groups)
    assert result.prefill_seconds > 0
    assert result.decode_seconds > 0


def test_an_end_on_the_last_draw_counts_as_the_end(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(1e4)
    assert generate(tiny.lm(), 0, 6).stopped == "end"
    assert generate(tiny.lm(), 0, 5).stopped == "length"


def test_greedy_generation_equals_full_forwards_over_masked_logits(tiny: Tiny) -> None:
    """No cache, no slices: the whole sequence again for every id, all logits, the rule, the mask, argmax."""
    ids = torch.tensor([PROMPT])
    for drawn in range(30):
        with torch.inference_mode():
            logits = tiny.model(ids).logits[0, -1]
        window = ids[0, -10:].tolist()
        if window.count(window[-1]) > 1:
            logits[window[-1]] = float("-inf")
        allowed = torch.full_like(logits, float("-inf"))
        places = list(tiny.vocabulary.legal_ids(drawn % 5)) + [tiny.vocabulary.end] * (drawn % 5 == 0 < drawn)
        allowed[places] = logits[places]
        ids = torch.cat([ids, allowed.argmax()[None, None]], dim=1)
    expected = tiny.vocabulary.numbers(ids[0, len(PROMPT) :].numpy())
    assert generate(tiny.lm(), 0, 30, GREEDY).tokens.numbers.tolist() == expected.tolist()


def test_the_repetition_rule_can_be_switched_off(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, 1)
    weight, vocabulary = tiny.model.lm_head.weight.data, tiny.vocabulary
    tiny.favour_end(-1e4)
    for favourite in (vocabulary.linguistic.start, vocabulary.semantic.start):
        weight[favourite] = 0.0
        weight[favourite, 0] = 1e4
    stuck = generate(tiny.lm(), 0, 10, SamplingParams(temperature=0, repetition_rule=False)).tokens.numbers
    assert stuck.tolist() == [0, 0, 1024, 1024, 1024] * 2
    freed = generate(tiny.lm(), 0, 10, GREEDY).tokens.numbers
    assert freed[:4].tolist() == [0, 0, 1024, 1024]
    assert freed[4] != 1024


def test_a_stop_wish_ends_the_run(tiny: Tiny) -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(len(asked))
        return len(asked) > 4

    with pytest.raises(Cancelled, match="stopped"):
        tiny.lm().generate(PROMPT, SamplingParams(), seed=0, max_tokens=50, should_stop=should_stop)
    assert len(asked) == 5
    with pytest.raises(Cancelled):
        tiny.lm(10).generate(PROMPT, SamplingParams(), seed=0, max_tokens=50, should_stop=lambda: True)


def test_progress_rises_to_what_was_drawn(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(-1e4)
    heard: list[tuple[int, int]] = []
    tiny.lm(10).generate(
        PROMPT, SamplingParams(), seed=0, max_tokens=25, progress=lambda done, most: heard.append((done, most))
    )
    assert heard == [(10, 25), (20, 25), (25, 25)]


@pytest.mark.parametrize("look_every", [1, 3, 10, 1000])
def test_numbers_are_heard_while_they_are_drawn(tmp_path: Path, look_every: int) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(3.0)
    stops = set()
    for seed in range(5):
        heard: list[np.ndarray] = []
        result = tiny.lm(look_every).generate(
            PROMPT, SamplingParams(), seed=seed, max_tokens=203, on_numbers=heard.append
        )
        numbers = np.concatenate(heard)
        whole = 5 * result.tokens.groups
        assert numbers.dtype == np.int64
        assert np.array_equal(numbers[:whole], result.tokens.numbers)
        assert len(numbers) == result.new_ids - (result.stopped == "end")
        assert all(len(part) == look_every for part in heard[:-1])
        assert 0 < len(heard[-1]) <= look_every
        stops.add(result.stopped)
    assert "end" in stops


def test_prompts_and_caps_out_of_range_are_refused_with_value_and_limit(tiny: Tiny) -> None:
    lm = tiny.lm()
    with pytest.raises(InvalidInput, match="prompt is 8188 ids long; the model takes 1 to 8187"):
        lm.generate([400] * 8188, SamplingParams(), seed=0, max_tokens=10)
    with pytest.raises(InvalidInput, match="prompt is 0 ids long"):
        lm.generate([], SamplingParams(), seed=0, max_tokens=10)
    with pytest.raises(InvalidInput, match="At most 4 new ids were asked for; the shortest sound takes 5"):
        generate(lm, max_tokens=4)
    with pytest.raises(InvalidInput, match="temperature"):
        generate(lm, params=SamplingParams(temperature=-1))


def test_the_longest_sequence_of_the_model_caps_the_new_ids(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(-1e4)
    lm = tiny.lm()
    lm.max_length = len(PROMPT) + 13
    result = generate(lm, max_tokens=500)
    assert (result.new_ids, result.tokens.groups, result.stopped) == (11, 2, "length")


def test_weights_that_compute_no_numbers_are_an_error(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(GenerationError, match="no finite numbers"):
        generate(tiny.lm())


def test_bfloat16_generates_too(tmp_path: Path) -> None:
    result = generate(Tiny(tmp_path, 2, torch.bfloat16).lm())
    assert result.tokens.groups > 0
    assert obeys_cycle(result.tokens.numbers)


def test_a_vocabulary_with_fewer_codes_speaks_only_those(tiny: Tiny) -> None:
    real = tiny.vocabulary
    small = SpeechVocabulary(real.linguistic[:20], real.semantic[:30], real.end)
    numbers = generate(SpeechLM(tiny.model, small), max_tokens=100).tokens.numbers.reshape(-1, 5)
    assert 0 <= numbers[:, :2].min() <= numbers[:, :2].max() < 20
    assert 1024 <= numbers[:, 2:].min() <= numbers[:, 2:].max() < 1054


def different_prompts(count: int) -> list[list[int]]:
    """Prompts of 7, 40, 73, ... ids: the first one shorter than the window of the repetition rule."""
    generator = torch.Generator().manual_seed(4)
    return [torch.randint(330, 5000, (7 + 33 * n,), generator=generator).tolist() for n in range(count)]


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(temperature=1.5, top_k=0, top_p=0.9)])
@pytest.mark.parametrize("look_every", [1, 7])
def test_a_batch_speaks_what_each_prompt_alone_would(tmp_path: Path, params: SamplingParams, look_every: int) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(2.5)
    lm = tiny.lm(look_every)
    prompts, seeds, caps = different_prompts(6), [3, 1, 4, 1, 5, 9], [200, 20, 63, 200, 5, 150]
    together = lm.generate_many(prompts, params, seeds=seeds, max_tokens=caps)
    stops = set()
    for prompt, seed, cap, result in zip(prompts, seeds, caps, together, strict=True):
        alone = lm.generate(prompt, params, seed=seed, max_tokens=cap)
        assert result.tokens.numbers.tolist() == alone.tokens.numbers.tolist()
        assert (result.new_ids, result.stopped) == (alone.new_ids, alone.stopped)
        stops.add(result.stopped)
    assert stops == ({"length"} if params == GREEDY else {"end", "length"})


def test_rows_that_have_ended_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(-1e4)
    lm, rows = tiny.lm(), []
    run_on = Step.run_on

    def listen(step: Step, keys: list[int], choices: list[int]) -> None:
        rows.extend([len(step._newest)] * len(choices))
        run_on(step, keys, choices)

    monkeypatch.setattr(Step, "run_on", listen)
    lm.generate_many(different_prompts(3), SamplingParams(), seeds=[0, 1, 2], max_tokens=[10, 5, 20])
    assert rows == [3] * 4 + [2] * 5 + [1] * 10


def test_takes_of_one_prompt_read_it_once(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.lm()
    alone = [generate(lm, seed).tokens.numbers.tolist() for seed in range(4)]
    read = recorded_reads(monkeypatch)
    takes = lm.generate_many([PROMPT] * 4, SamplingParams(), seeds=range(4), max_tokens=[60] * 4)
    assert [take.tokens.numbers.tolist() for take in takes] == alone
    assert len({tuple(numbers) for numbers in alone}) == 4
    assert read == [(0, len(PROMPT))]


def in_one_voice(rests: Sequence[int]) -> list[list[int]]:
    """Prompts that begin alike for 30 ids and go on differently, each for so many ids."""
    return [[*PROMPT[:30], *range(700 + number, 700 + number + rest)] for number, rest in enumerate(rests)]


@pytest.mark.parametrize("prefix_bytes", [0, 2**24])
def test_prompts_that_begin_alike_are_read_side_by_side(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, prefix_bytes: int
) -> None:
    prompts = in_one_voice([20, 5, 33, 20])
    prompts.insert(2, prompts[0])  # a second take of the first
    alone = [tiny.lm().generate(prompt, GREEDY, seed=0, max_tokens=60, shared=30) for prompt in prompts]
    seen, read = states(monkeypatch), recorded_reads(monkeypatch)
    for prompt in prompts:
        tiny.lm().generate(prompt, GREEDY, seed=0, max_tokens=5, shared=30)
    expected, seen[:], read[:] = list(seen), [], []
    lm = SpeechLM(tiny.model, tiny.vocabulary, prefix_bytes=prefix_bytes)
    together = lm.generate_many(prompts, GREEDY, seeds=[0] * 5, max_tokens=[60] * 5, shared=[30] * 5)
    again = [] if prefix_bytes else [(0, 30)]
    assert read == [(0, 30), (30, 20), *again, (30, 33)], "the second take stands between the second and the third text"
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert [made.tokens.numbers.tolist() for made in together] == [made.tokens.numbers.tolist() for made in alone]


@pytest.mark.parametrize(
    ("most", "rests", "read"),
    [
        (4096, [20, 20, 20], [20]),
        (40, [20, 20, 20], [20, 20]),
        (4096, [2, 60, 2], [60, 2]),
        (4096, [60, 2, 2], [60, 2]),
    ],
)
def test_what_is_read_at_once_is_bounded_and_no_more_filling_than_prompts(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, most: int, rests: list[int], read: list[int]
) -> None:
    monkeypatch.setattr("stepaudio.llm.generate._READ_AT_ONCE", most)
    lm = SpeechLM(tiny.model, tiny.vocabulary, prefix_bytes=2**24)
    seen = recorded_reads(monkeypatch)
    lm.generate_many(in_one_voice(rests), GREEDY, seeds=[0] * 3, max_tokens=[5] * 3, shared=[30] * 3)
    assert seen == [(0, 30), *((30, length) for length in read)]


def test_a_batch_tells_whose_numbers_it_has_drawn(tmp_path: Path) -> None:
    tiny = Tiny(tmp_path, 1)
    tiny.favour_end(2.5)
    heard: dict[int, list[int]] = {0: [], 1: [], 2: []}
    progress: list[tuple[int, int]] = []
    results = tiny.lm(4).generate_many(
        different_prompts(3),
        SamplingParams(),
        seeds=[5, 6, 7],
        max_tokens=[50, 100, 150],
        on_numbers=lambda request, numbers: heard[request].extend(numbers.tolist()),
        progress=lambda done, most: progress.append((done, most)),
    )
    assert [heard[n] for n in range(3)] == [result.tokens.numbers.tolist() for result in results]
    assert progress == sorted(progress)
    assert progress[-1] == (sum(len(numbers) for numbers in heard.values()), 300)


def test_an_empty_batch_is_no_work_and_lists_of_other_lengths_are_refused(tiny: Tiny) -> None:
    assert tiny.lm().generate_many([], SamplingParams(), seeds=[], max_tokens=[]) == []
    with pytest.raises(ValueError, match="shorter"):
        tiny.lm().generate_many([PROMPT] * 2, SamplingParams(), seeds=[1], max_tokens=[10, 10])


def test_requests_of_several_threads_do_not_meet(tiny: Tiny) -> None:
    lm = tiny.lm()
    alone = [generate(lm, seed).tokens.numbers.tolist() for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: generate(lm, seed).tokens.numbers.tolist(), range(6)))
    assert together == alone


def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What the decoder will be given to read: (first position, how many)."""
    read: list[tuple[int, int]] = []
    forward = Decoder.forward

    def reading(decoder: Decoder, ids: torch.Tensor, **rest: int) -> torch.Tensor:
        read.append((rest.get("start", 0), ids.shape[1]))
        return forward(decoder, ids, **rest)

    monkeypatch.setattr(Decoder, "forward", reading)
    return read


def states(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What the decoder leaves after a prompt: the state and the cache, bit by bit."""
    seen: list[torch.Tensor] = []
    begin = DecodeState.begin

    def beginning(state: DecodeState, row: int, prompt: list[int], hidden: torch.Tensor, rest: torch.Tensor) -> None:
        seen.append(torch.cat([hidden, state.cache.row(row).first(len(prompt)).reshape(-1)]).clone())
        begin(state, row, prompt, hidden, rest)

    monkeypatch.setattr(DecodeState, "begin", beginning)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [1, 30, 59])
def test_a_kept_beginning_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: int, dtype: torch.dtype
) -> None:
    """The first request misses, the second hits, and a model that keeps nothing reads in the same two blocks."""
    tiny = Tiny(tmp_path, 1, dtype)
    keeping = SpeechLM(tiny.model, tiny.vocabulary, prefix_bytes=2**24)
    read, seen = recorded_reads(monkeypatch), states(monkeypatch)
    results = [
        lm.generate(PROMPT, SamplingParams(), seed=3, max_tokens=100, shared=shared).tokens.numbers.tolist()
        for lm in (keeping, keeping, tiny.lm())
    ]
    blocks = [(0, shared), (shared, len(PROMPT) - shared)]
    assert read == [*blocks, blocks[1], *blocks]
    assert results[0] == results[1] == results[2]
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


def test_a_shared_beginning_changes_only_the_last_bits(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny.lm()
    seen = states(monkeypatch)
    greedy = [lm.generate(PROMPT, GREEDY, seed=0, max_tokens=100, shared=n).tokens.numbers.tolist() for n in (0, 30)]
    assert greedy[0] == greedy[1]
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=0)


def test_only_equal_ids_share_a_beginning(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = SpeechLM(tiny.model, tiny.vocabulary, prefix_bytes=2**24)
    other = [PROMPT[0] + 1, *PROMPT[1:]]
    longer = [*PROMPT[:30], *range(800, 850)]
    alone = [
        tiny.lm().generate(p, GREEDY, seed=0, max_tokens=50, shared=30).tokens.numbers.tolist() for p in (other, longer)
    ]
    read = recorded_reads(monkeypatch)
    lm.generate(PROMPT, GREEDY, seed=0, max_tokens=50, shared=30)
    together = lm.generate_many([other, longer], GREEDY, seeds=[0, 0], max_tokens=[50, 50], shared=[30, 30])
    assert read == [(0, 30), (30, 30), (0, 30), (30, 30), (30, 50)], "the two begin differently"
    assert [result.tokens.numbers.tolist() for result in together] == alone
    assert lm.generate([PROMPT[0]], GREEDY, seed=0, max_tokens=5, shared=9).tokens.groups == 1
