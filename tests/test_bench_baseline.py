"""The baseline computes what the product computes, only otherwise: else to compare their times would mean nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stepaudio.bench.baseline import GrowingCache, SerialEncoder
from stepaudio.bench.workbench import TEXT, Case, Workbench
from stepaudio.device import choose
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams
from stepaudio.weights import choose_weights
from tests.conftest import voice

CASE = Case(reference_seconds=1.5, sound_seconds=0.6, flow_steps=3)


@pytest.fixture(scope="module")
def bench(tiny_weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    settings = Settings(weights=str(tiny_weights), cache_dir=folder / "cache")
    with Workbench(choose_weights(settings), settings, choose("cpu"), folder) as bench:
        yield bench


@pytest.fixture(scope="module")
def encoding(bench):
    return bench.encoder.encode(CASE.reference().waveform).encoding


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(temperature=0.0), SamplingParams(top_p=0.9)])
def test_plain_decoding_writes_the_ids_of_the_product(bench, encoding, params):
    ids, _ = bench.prompt(CASE, encoding)
    plain = bench.plain_lm.generate(ids, params, seed=3, max_tokens=60)
    ours = bench.step_lm.generate(ids, params, seed=3, max_tokens=60)
    assert plain.new_ids == ours.new_ids == 60
    assert np.array_equal(plain.tokens.numbers, ours.tokens.numbers)
    assert plain.stopped == ours.stopped == "length"
    assert plain.prefill_seconds > 0
    assert plain.decode_seconds > 0


def test_plain_decoding_tells_every_number_at_once(bench, encoding):
    ids, _ = bench.prompt(CASE, encoding)
    heard: list[int] = []
    made = bench.plain_lm.generate(
        ids, SamplingParams(), seed=3, max_tokens=10, on_numbers=lambda numbers: heard.extend(numbers.tolist())
    )
    assert heard == made.tokens.numbers.tolist()


def test_plain_decoding_ends_where_the_product_ends(bench, encoding, monkeypatch):
    """The weights never draw the end; here one of the numbers that both draw at a group's start is called the end."""
    ids, _ = bench.prompt(CASE, encoding)
    drawn = bench.plain_lm.generate(ids, SamplingParams(), seed=3, max_tokens=60).tokens.numbers
    end = int(bench.vocabulary.ids(drawn[5:6])[0])
    monkeypatch.setattr(bench.plain_lm, "_vocabulary", replace(bench.vocabulary, end=end))
    made = bench.plain_lm.generate(ids, SamplingParams(), seed=3, max_tokens=60)
    assert made.stopped == "end"
    assert made.tokens.numbers.tolist() == drawn[:5].tolist()


def test_the_chunk_loop_gives_the_codes_of_the_product(bench):
    samples = voice(2.0, 16000).samples
    assert np.array_equal(bench.looped.encode(samples), bench.linguistic.encode(samples))


def serial_encoder(bench: Workbench) -> SerialEncoder:
    """Return the reference's encoder with the product's ONNX sessions: other threads add up in another order."""
    ours = bench.encoder
    return SerialEncoder(linguistic=bench.looped, semantic=ours.semantic, speaker=ours.speaker, mel=ours.mel)


def test_one_part_after_another_gives_the_same_encoding(bench, encoding):
    serial = serial_encoder(bench)
    encoded = serial.encode(CASE.reference().waveform)
    for name in ("linguistic", "semantic"):
        assert np.array_equal(getattr(encoded.encoding, name), getattr(encoding, name)), name
    for name in ("mel", "speaker"):  # the product's threads are others, which may add up in another order
        np.testing.assert_allclose(getattr(encoded.encoding, name), getattr(encoding, name), atol=1e-4, err_msg=name)
    ends = [part.end for part in encoded.parts]
    assert [part.start for part in encoded.parts[1:]] == ends[:-1]
    assert sum(part.end - part.start for part in encoded.parts) <= encoded.seconds


@pytest.mark.parametrize("tuned", [False, True])
def test_onnx_sessions_of_other_threads_differ_by_rounding_alone(bench, encoding, tuned):
    """They add up in another order, which the signs that tiny's semantic codes are made of may show."""
    encoded = bench.baseline_encoder(tuned_onnx=tuned).encode(CASE.reference().waveform).encoding
    assert np.mean(encoded.semantic == encoding.semantic) > 0.9
    assert np.allclose(encoded.speaker, encoding.speaker, atol=1e-3)


@pytest.mark.parametrize("guidance", [0.7, 0.0])
def test_the_plain_solver_gives_the_mel_of_the_product(bench, encoding, guidance, monkeypatch):
    for vocoder in (bench.vocoder, bench.plain_vocoder):
        monkeypatch.setattr(vocoder._flow.decoder, "guidance", guidance)
    ids, prompt = bench.prompt(CASE, encoding)
    tokens = bench.step_lm.generate(ids, SamplingParams(), seed=3, max_tokens=25).tokens
    mels = [
        vocoder.flow(tokens, prompt, encoding.mel, encoding.speaker, seed=1, steps=4)
        for vocoder in (bench.vocoder, bench.plain_vocoder)
    ]
    assert mels[0].shape == mels[1].shape
    assert torch.allclose(mels[0], mels[1], atol=1e-4)


def test_the_growing_cache_holds_all_so_far():
    cache = GrowingCache(2)
    first, second = torch.ones(1, 1, 3, 2), torch.full((1, 1, 1, 2), 2.0)
    cache.write(1, torch.arange(3), first, -first, 3)
    key, value = cache.write(1, torch.tensor([3]), second, -second, 4)
    assert key[0, 0, :, 0].tolist() == [1, 1, 1, 2]
    assert torch.equal(value, -key)
    assert cache.write(0, torch.tensor([0]), second, second, 1)[0].shape[2] == 1


def test_the_whole_baseline_makes_the_sound_of_the_product(bench):
    reference = CASE.reference(4)
    told = {"flow_steps": CASE.flow_steps, "max_seconds": CASE.sound_seconds}
    with bench.new_cache(enabled=False) as off:
        pipeline = bench.baseline(serial_encoder(bench), off)
        theirs = pipeline.clone(reference, TEXT, CASE.sampling, **told)
    ours = bench.ours.clone(reference, TEXT, CASE.sampling, **told)
    assert np.array_equal(theirs.tokens.numbers, ours.tokens.numbers)
    assert np.abs(theirs.waveform.samples - ours.waveform.samples).max() < 1e-3
    assert theirs.timings.find("FunASR").note == "miss"
