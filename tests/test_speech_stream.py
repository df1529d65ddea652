"""Streaming on tiny weights: sound before the last token, one end for both sides, flat memory."""

from __future__ import annotations

import gc
import json
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.errors import Cancelled, GenerationError, InvalidInput
from stepaudio.speech_stream import MOST_AHEAD
from stepaudio.tokens import IDS_PER_SECOND
from stepaudio.types import Reference, SamplingParams, Waveform
from tests.conftest import voice
from tests.test_vocoder_stream import held_bytes

SEED = SamplingParams(seed=11)
FIRST_PIECE = 10_560
LONG_TEXT = "[sigh] " * 60  # a tag may take three seconds and needs few ids of the prompt


@pytest.fixture(scope="module")
def long_weights(tiny_weights, tmp_path_factory) -> Path:
    """Tiny weights without the cap of their card: they may speak for minutes."""
    folder = shutil.copytree(tiny_weights, tmp_path_factory.mktemp("long") / "weights")
    (folder / "card.json").write_text(json.dumps({"title": "long"}))
    return folder


@pytest.fixture
def pipeline(make_engine, long_weights):
    return make_engine(weights=str(long_weights), passage_seconds=100.0).pipeline


@pytest.fixture
def reference() -> Reference:
    return Reference(voice(2.0), "the words of the reference")


def chirp(seconds: float = 2.0, rate: int = 24_000) -> Waveform:
    """Return a tone that glides from 100 to 400 Hz."""
    t = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * (100 * t + 150 * t**2 / seconds)
    return Waveform((0.4 * np.sin(phase)).astype(np.float32), rate)


def model_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("stepaudio-lm")]


def streamed(pipeline, reference, **options):
    asked = {"flow_steps": 1, "max_seconds": 4.0, **options}
    return pipeline.stream(reference, LONG_TEXT, SEED, **asked)


@pytest.mark.parametrize("seconds", [0.12, 0.6, 0.72, 4.0])
def test_a_stream_says_the_same_tokens_as_a_clone_in_as_many_samples(pipeline, reference, seconds):
    options = {"flow_steps": 1, "max_seconds": seconds}
    whole = pipeline.clone(reference, LONG_TEXT, SEED, **options)
    pieces: list[Waveform] = []
    made = pipeline.stream(reference, LONG_TEXT, SEED, **options).into(pieces.append)
    np.testing.assert_array_equal(made.tokens.numbers, whole.tokens.numbers)
    assert made.prompt_ids == whole.prompt_ids
    assert len(made.waveform.samples) == len(whole.waveform.samples) == 2880 * round(seconds / 0.12)
    np.testing.assert_array_equal(np.concatenate([piece.samples for piece in pieces]), made.waveform.samples)
    assert {piece.sample_rate for piece in pieces} == {made.waveform.sample_rate} == {24_000}
    assert (made.seed, made.stopped, whole.first_sound) == (11, "length", None)


def test_the_first_piece_is_there_while_the_model_writes_and_it_runs_ahead_by_a_bounded_number(
    pipeline, reference, monkeypatch
):
    drawn = []
    generate = pipeline._lm.generate

    def counting(*args, on_numbers, **kwargs):
        def hear(numbers):
            on_numbers(numbers)
            drawn.extend(numbers)

        return generate(*args, on_numbers=hear, **kwargs)

    monkeypatch.setattr(pipeline._lm, "generate", counting)
    with streamed(pipeline, reference, max_seconds=20.0) as stream:
        assert drawn == []  # nothing runs before it is asked for
        assert len(next(stream).samples) == FIRST_PIECE
        time.sleep(2.0)  # a slow listener
        assert 30 <= len(drawn) <= 35 + MOST_AHEAD < 20 * IDS_PER_SECOND
        for _ in stream:
            pass
    assert len(drawn) // 5 == stream.synthesis.tokens.groups


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("compiled", [True, False])
def test_a_model_that_decodes_alone_leaves_the_helpers_to_the_vocoder(
    make_engine, long_weights, reference, monkeypatch, compiled
):
    pipeline = make_engine(weights=str(long_weights), fused_kernels=compiled).pipeline
    assert pipeline._lm.alone == compiled
    helpers = []
    generate = pipeline._lm.generate

    def counting(*args, **kwargs):
        helpers.append(torch.get_num_threads() - 1)
        return generate(*args, **kwargs)

    monkeypatch.setattr(pipeline._lm, "generate", counting)
    streamed(pipeline, reference).into(lambda piece: None)
    assert helpers == [0 if compiled else 2]
    assert torch.get_num_threads() == 3


def test_the_steps_at_the_joins_are_as_small_as_those_within_the_pieces(pipeline):
    """Bound: twice the root mean square of all steps from sample to sample; measured is 0.64 of it at most."""
    pieces: list[Waveform] = []
    reference = Reference(chirp(), "a tone that glides")
    made = streamed(pipeline, reference, max_seconds=12.0, flow_steps=4).into(pieces.append)
    steps = np.abs(np.diff(made.waveform.samples))
    joins = np.cumsum([len(piece.samples) for piece in pieces])[:-1]
    assert len(joins) >= 6
    # Where a piece ends, and where the cross-fade of two frames does.
    places = np.concatenate((joins - 1, joins + 960 - 1))
    assert steps[places].max() < 2 * np.sqrt(np.mean(np.square(steps)))


def test_stages_sum_to_their_parent_and_what_ran_side_by_side_shows_its_own_seconds(pipeline, reference):
    timer = pipeline.timer()
    with timer.stage("Clone"):
        made = streamed(pipeline, reference, timer=timer).into(lambda piece: None)
    clone = timer.finish().find("Clone")
    assert [child.name for child in clone.children] == ["FunASR", "LLM", "Flow", "Vocoder", "other"]
    assert all(child.seconds >= 0 for child in clone.children)
    assert sum(child.seconds for child in clone.children) == pytest.approx(clone.seconds, abs=1e-3)
    for name in ("LLM", "Flow", "Vocoder"):
        stage = clone.children[["FunASR", "LLM", "Flow", "Vocoder"].index(name)]
        assert stage.busy > 0
        assert stage.seconds <= stage.busy + 1e-9
    assert 0 < made.first_sound < made.timings.total


def test_the_first_sound_is_counted_from_the_beginning_of_the_request(pipeline, reference):
    timer = pipeline.timer()
    time.sleep(0.3)  # another part of the request
    assert streamed(pipeline, reference, timer=timer).into(lambda piece: None).first_sound > 0.3


def test_progress_moves_on_and_ends(pipeline, reference):
    seen = []
    streamed(pipeline, reference, progress=lambda *step: seen.append(step)).into(lambda piece: None)
    assert list(dict.fromkeys(stage for stage, _ in seen)) == ["FunASR", "LLM", "Vocoder"]
    assert seen[-1] == ("Vocoder", 1.0)


def test_there_is_no_result_before_the_end(pipeline, reference):
    with streamed(pipeline, reference) as stream:
        next(stream)
        with pytest.raises(ValueError, match="not come to its end"):
            _ = stream.synthesis


@pytest.mark.parametrize("text", ["", "a" * 6000])
def test_what_the_user_can_mend_is_told_before_anything_runs(pipeline, reference, text):
    with pytest.raises(InvalidInput, match="text"):
        pipeline.stream(reference, text)


def fail_after(function, calls: int, error: Exception):
    """Return the function, which fails once it was called so often."""
    count = iter(range(calls))

    def failing(*args, **kwargs):
        if next(count, None) is None:
            raise error
        return function(*args, **kwargs)

    return failing


def failing_model(generate, ids: int, error: Exception):
    """Return the language model's generate, which fails once it has told of more numbers than so many."""

    def failing(*args, on_numbers, **kwargs):
        heard = 0

        def hear(numbers):
            nonlocal heard
            heard += len(numbers)
            if heard > ids:
                raise error
            on_numbers(numbers)

        return generate(*args, on_numbers=hear, **kwargs)

    return failing


@pytest.mark.parametrize("side", ["model", "vocoder"])
def test_an_error_of_either_side_ends_both_and_is_raised_once(pipeline, reference, monkeypatch, side):
    stream = streamed(pipeline, reference, max_seconds=30.0)
    error = GenerationError("made up")
    if side == "model":
        monkeypatch.setattr(pipeline._lm, "generate", failing_model(pipeline._lm.generate, 600, error))
    else:
        monkeypatch.setattr(stream.voice, "push", fail_after(stream.voice.push, 20, error))
    next(stream)
    with pytest.raises(GenerationError, match="made up") as raised:
        list(stream)
    assert raised.value is error
    assert list(stream) == []
    assert model_threads() == []
    assert stream.voice.closed


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_a_stop_ends_both_sides_within_a_second(pipeline, reference, asked):
    stop = threading.Event()
    stream = streamed(pipeline, reference, max_seconds=60.0, should_stop=stop.is_set)
    for _ in range(asked):
        next(stream)
    stop.set()
    start = time.monotonic()
    with pytest.raises(Cancelled):
        list(stream)
    assert time.monotonic() - start < 1.0
    assert model_threads() == []
    assert stream.voice.closed


@pytest.mark.parametrize("asked", [0, 1])
def test_closing_early_releases_everything_within_a_second(pipeline, reference, asked):
    stream = streamed(pipeline, reference, max_seconds=60.0)
    for _ in range(asked):
        next(stream)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 1.0
    assert model_threads() == []
    assert stream.voice.closed
    assert list(stream) == []
    stream.close()
    assert len(stream.waveform.samples) == asked * FIRST_PIECE


def test_a_stream_that_is_forgotten_ends_as_well(pipeline, reference):
    stream = streamed(pipeline, reference, max_seconds=60.0)
    next(stream)
    assert len(model_threads()) == 1
    del stream
    gc.collect()
    assert model_threads() == []


def three_minutes(pipeline, reference):
    """Yield the stream of 180 s of speech after each of its pieces."""
    with pipeline.stream(reference, LONG_TEXT, SEED, flow_steps=1, max_seconds=180.0) as stream:
        for _ in stream:
            yield stream
    assert len(stream.synthesis.waveform.samples) == 180 * 24_000
    assert stream.synthesis.tokens.groups == 1500


def test_what_a_stream_of_three_minutes_holds_stops_growing(pipeline, reference):
    """But for the sound itself, which is the result; the model's cache has its size from the beginning."""
    held = [held_bytes(stream.voice) for stream in three_minutes(pipeline, reference)]
    settled = held[len(held) // 2 : -1]  # from 90 s on; the encoder looks back for one minute
    assert len(settled) > 40
    assert len(set(settled)) == 1


@pytest.mark.proof
def test_the_process_does_not_grow_with_a_stream_by_more_than_its_sound(pipeline, reference):
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    sizes = [resident() for _ in three_minutes(pipeline, reference)]
    half, end = sizes[len(sizes) // 2], sizes[-1]
    sound = 4 * 90 * 24_000  # bytes of the second half
    assert end - half < sound + 8e6
