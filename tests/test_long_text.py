"""Long texts, takes and several texts: decoded side by side, with the results of one by one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stepaudio.errors import Cancelled, InvalidInput
from stepaudio.pipeline import MAX_TAKES
from stepaudio.text import SENTENCE_PAUSE, passages
from stepaudio.types import Reference, SamplingParams, Waveform
from tests.conftest import voice
from tests.proofs.kit import write

GREEDY = SamplingParams(temperature=0, seed=5)
DRAWN = SamplingParams(seed=5)
TEXT = "It is one day. It is two now. It is a last."
QUICK = {"flow_steps": 1}


@pytest.fixture(scope="module")
def long_weights(tiny_weights, tmp_path_factory) -> Path:
    """Tiny weights without the cap of their card: they may speak for minutes."""
    folder = shutil.copytree(tiny_weights, tmp_path_factory.mktemp("long") / "weights")
    (folder / "card.json").write_text(json.dumps({"title": "long"}))
    return folder


@pytest.fixture
def load(make_engine, long_weights):
    return lambda **settings: make_engine(weights=str(long_weights), **{"passage_seconds": 1.0, **settings}).pipeline


@pytest.fixture
def pipeline(load):
    return load()


@pytest.fixture
def reference() -> Reference:
    return Reference(voice(2.0), "the words of the reference")


@pytest.fixture
def calls(pipeline, monkeypatch) -> list[int]:
    """How many prompts each call of the language model brings."""
    seen: list[int] = []
    generate = pipeline._lm.generate_many
    monkeypatch.setattr(
        pipeline._lm,
        "generate_many",
        lambda prompts, *a, **k: (seen.append(len(prompts)), generate(prompts, *a, **k))[1],
    )
    return seen


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_long_text_says_what_its_passages_say_one_by_one(pipeline, reference, calls, sampling):
    made = pipeline.clone(reference, TEXT, sampling, max_seconds=20.0, **QUICK)
    assert calls == [3]
    parts = [p.text for p in passages(TEXT, 1.0)]
    alone = [pipeline.clone(reference, part, sampling, max_seconds=20.0, **QUICK) for part in parts]
    np.testing.assert_array_equal(made.tokens.numbers, np.concatenate([one.tokens.numbers for one in alone]))
    assert (made.passages, made.transcript, made.seed) == (3, TEXT, 5)
    assert made.prompt_ids == sum((one.prompt_ids for one in alone), ())
    # Noise has no silence to cut: only the pauses come to the sound.
    seconds = sum(one.waveform.seconds for one in alone) + 2 * SENTENCE_PAUSE
    assert made.waveform.seconds == pytest.approx(seconds, abs=0.65)
    assert np.abs(made.waveform.samples).max() <= 1


def test_a_text_of_one_passage_is_not_touched(load, reference):
    short, long = load(passage_seconds=1.0), load(passage_seconds=100.0)
    text = "It is one day."
    first, second = (p.clone(reference, text, DRAWN, max_seconds=1.2, **QUICK) for p in (short, long))
    np.testing.assert_array_equal(first.waveform.samples, second.waveform.samples)
    assert first.passages == 1


def test_the_longest_sound_holds_for_all_passages_together(pipeline, reference):
    whole = pipeline.clone(reference, TEXT, DRAWN, max_seconds=20.0, **QUICK)
    cut = pipeline.clone(reference, TEXT, DRAWN, max_seconds=7.0, **QUICK)
    assert 5.5 < cut.waveform.seconds <= 7.0
    np.testing.assert_array_equal(cut.tokens.numbers, whole.tokens.numbers[: len(cut.tokens.numbers)])
    assert cut.stopped == "length"


def test_the_number_of_rows_bounds_what_is_decoded_at_once_and_changes_nothing(load, reference):
    wide, narrow = load(), load(decode_rows=2)
    sizes = []
    generate = narrow._lm.generate_many
    narrow._lm.generate_many = lambda prompts, *a, **k: (sizes.append(len(prompts)), generate(prompts, *a, **k))[1]
    made = narrow.clone(reference, TEXT, GREEDY, max_seconds=20.0, **QUICK)
    assert sizes == [2, 1]
    expected = wide.clone(reference, TEXT, GREEDY, max_seconds=20.0, **QUICK)
    np.testing.assert_array_equal(made.tokens.numbers, expected.tokens.numbers)


def test_takes_are_clones_with_seeds_that_count_up_from_one_reading_of_the_prompt(pipeline, reference, calls):
    made = pipeline.takes(reference, "Hello there.", 3, DRAWN, max_seconds=1.2, **QUICK)
    assert calls == [3]
    assert [take.seed for take in made] == [5, 6, 7]
    for take in made:
        alone = pipeline.clone(reference, "Hello there.", replace(DRAWN, seed=take.seed), max_seconds=1.2, **QUICK)
        np.testing.assert_array_equal(take.tokens.numbers, alone.tokens.numbers)
        np.testing.assert_array_equal(take.waveform.samples, alone.waveform.samples)
    assert not np.array_equal(made[0].tokens.numbers, made[1].tokens.numbers)


def test_the_rtf_of_takes_is_that_of_all_their_sound(pipeline, reference):
    made = pipeline.takes(reference, "Hello there.", 3, DRAWN, max_seconds=1.2, **QUICK)
    seconds = sum(take.waveform.seconds for take in made)
    assert [take.made_seconds for take in made] == pytest.approx([seconds] * 3)
    assert [take.rtf for take in made] == pytest.approx([take.timings.total / seconds for take in made])
    alone = pipeline.clone(reference, "Hello there.", DRAWN, max_seconds=1.2, **QUICK)
    assert alone.made_seconds == alone.waveform.seconds


def test_takes_of_a_long_text_are_decoded_together_and_the_seeds_wrap(pipeline, reference, calls):
    made = pipeline.takes(reference, TEXT, 2, SamplingParams(seed=2**32 - 1), max_seconds=20.0, **QUICK)
    assert calls == [6]
    assert [(take.seed, take.passages) for take in made] == [(2**32 - 1, 3), (0, 3)]


@pytest.mark.parametrize("count", [0, MAX_TAKES + 1])
def test_a_number_of_takes_out_of_range_is_refused(pipeline, reference, count):
    with pytest.raises(InvalidInput, match=f"number of takes is {count}"):
        pipeline.takes(reference, "Hello.", count)


def test_many_texts_give_what_each_gives_alone_and_the_reference_is_encoded_once(pipeline, reference, calls):
    texts = ["Hello there.", TEXT, "And good bye."]
    made = pipeline.clone_many(reference, texts, GREEDY, max_seconds=12.0, **QUICK)
    assert calls == [5]
    assert (pipeline.cache.stats().misses, pipeline.cache.stats().hits) == (1, 0)
    assert [one.transcript for one in made] == texts
    for one, text in zip(made, texts, strict=True):
        alone = pipeline.clone(reference, text, GREEDY, max_seconds=12.0, **QUICK)
        np.testing.assert_array_equal(one.tokens.numbers, alone.tokens.numbers)
        np.testing.assert_array_equal(one.waveform.samples, alone.waveform.samples)


def test_many_texts_share_one_drawn_seed_and_none_give_nothing(pipeline, reference):
    made = pipeline.clone_many(reference, ["One.", "Two."], max_seconds=0.6, **QUICK)
    assert made[0].seed == made[1].seed
    assert pipeline.clone_many(reference, [], **QUICK) == []


def test_one_bad_text_is_told_before_anything_runs(pipeline, reference, calls):
    with pytest.raises(InvalidInput, match="The text is empty"):
        pipeline.clone_many(reference, ["Hello.", "  "], **QUICK)
    assert calls == []
    assert pipeline.cache.stats().misses == 0


def test_progress_of_a_long_text_only_rises_within_each_stage_and_a_stop_is_heeded(pipeline, reference):
    seen: list[tuple[str, float]] = []
    pipeline.clone(
        reference, TEXT, DRAWN, max_seconds=6.0, flow_steps=2, progress=lambda stage, done: seen.append((stage, done))
    )
    for stage in ("LLM", "Flow", "Vocoder"):
        fractions = [done for name, done in seen if name == stage]
        assert fractions == sorted(fractions)
        assert 0.0 <= fractions[0] <= fractions[-1] <= 1.0
    with pytest.raises(Cancelled):
        pipeline.clone(reference, TEXT, DRAWN, should_stop=lambda: True, **QUICK)


def test_a_stream_of_a_long_text_says_the_same_tokens_with_the_same_pauses(pipeline, reference):
    whole = pipeline.clone(reference, TEXT, DRAWN, max_seconds=12.0, **QUICK)
    pieces: list[Waveform] = []
    made = pipeline.stream(reference, TEXT, DRAWN, max_seconds=12.0, **QUICK).into(pieces.append)
    np.testing.assert_array_equal(made.tokens.numbers, whole.tokens.numbers)
    assert (made.passages, made.stopped, made.prompt_ids) == (whole.passages, whole.stopped, whole.prompt_ids)
    # What is silence at an edge, and so is cut, may differ by as much as is cut at the most.
    assert made.waveform.seconds == pytest.approx(whole.waveform.seconds, abs=0.65)
    assert len(pieces) > 5


def test_a_stream_of_a_long_text_has_its_pauses_where_the_passages_meet(pipeline, reference):
    made = pipeline.stream(reference, TEXT, DRAWN, max_seconds=20.0, **QUICK).into(lambda piece: None)
    silent = np.flatnonzero(made.waveform.samples == 0)
    runs = np.split(silent, np.flatnonzero(np.diff(silent) > 1) + 1)
    long_runs = [run for run in runs if len(run) > 0.25 * 24_000]
    assert len(long_runs) == made.passages - 1 == 2
    groups = [
        pipeline.clone(reference, passage.text, DRAWN, max_seconds=20.0, **QUICK).tokens.groups
        for passage in passages(TEXT, 1.0)
    ]
    assert long_runs[0][0] / 24_000 == pytest.approx(groups[0] * 0.12, abs=0.35)


@pytest.mark.proof
def test_three_minutes_of_text_stream_with_flat_memory(load, reference):
    """Some twenty passages. Beyond the sound itself, which is the result, the process grows by less than 8 MB."""
    pipeline = load(passage_seconds=2.0)
    text = " ".join(f"Sentence number {number} of a long text, which goes on." for number in range(60))
    sizes: list[int] = []
    with pipeline.stream(reference, text, DRAWN, max_seconds=180.0, **QUICK) as stream:
        for _ in stream:
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    made = stream.synthesis
    assert made.passages > 15
    assert made.waveform.seconds > 170
    half, end = sizes[len(sizes) // 2], sizes[-1]
    result = {
        "passages": made.passages,
        "sound_seconds": round(made.waveform.seconds, 2),
        "pieces": len(sizes),
        "resident_megabytes": {"first_piece": sizes[0] / 1e6, "half": half / 1e6, "last_piece": end / 1e6},
        "sound_of_second_half_megabytes": 4 * 90 * 24_000 / 1e6,
    }
    write("long_stream", result, "python -m pytest -m proof tests/test_long_text.py")
    assert end - half < 4 * 90 * 24_000 + 8e6


def test_every_passage_of_a_long_text_is_asked_for_in_its_language(pipeline, reference, monkeypatch):
    told: list[str] = []
    clone = pipeline._prompts.clone
    monkeypatch.setattr(
        pipeline._prompts,
        "clone",
        lambda heard, prompt, text, sound: (told.append(text), clone(heard, prompt, text, sound))[1],
    )
    pipeline.clone(reference, f"[Cantonese]{TEXT}", GREEDY, **QUICK)
    assert len(told) > 1
    assert all(text.startswith("[Cantonese]") and text.count("[") == 1 for text in told)
