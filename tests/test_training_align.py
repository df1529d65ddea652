"""The alignment of a known text to a recogniser's answers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from training.align import aligned, best_path, read_aligned, states, with_bounds
from training.data import Example, bank_of, cache_features
from training.linguistic import labels_of
from training.phones import CLASSES, SILENCE, classes
from training.shards import Clip, ClipRecord, write_shard


def sure(answers: str) -> np.ndarray:
    """Log-probabilities of a recogniser that is nearly sure of each answer; _ is silence."""
    scores = np.full((len(answers), CLASSES), np.log(0.1 / CLASSES))
    for step, phone in enumerate(answers):
        scores[step, classes(phone)[0] if phone != "_" else SILENCE] = np.log(0.9)
    return scores


def test_phonemes_lie_where_they_are_answered_and_a_stress_mark_takes_no_time() -> None:
    phones, bounds, mean = aligned(sure("__hhɛɛɛl_"), "hˈɛl")
    assert (phones, bounds) == ("hˈɛl", [2, 4, 4, 7, 8])
    assert mean == pytest.approx(np.log(0.9))


def test_a_space_is_passed_over_where_words_touch_and_a_comma_where_the_speaker_paused() -> None:
    assert aligned(sure("dddɪɪ"), "d ɪ")[:2] == ("d ɪ", [0, 3, 3, 5])
    assert aligned(sure("dd____ɪɪ"), "d ɪ")[:2] == ("d,ɪ", [0, 2, 6, 8])


def test_equal_phonemes_of_two_words_share_the_time_between_them() -> None:
    _, bounds, _ = aligned(sure("dddd"), "d d")
    assert bounds[0] == 0
    assert bounds[-1] == 4
    assert 0 < bounds[1] == bounds[2] < 4


def test_every_phoneme_gets_an_answer_even_where_the_recogniser_heard_none() -> None:
    _, bounds, mean = aligned(sure("h__l"), "hɛl")
    assert all(after > before for before, after in itertools.pairwise(bounds))
    assert mean < np.log(0.9)


def test_a_text_longer_than_the_sound_is_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        aligned(sure("hɛ"), "hɛlO")


def test_the_trainers_read_the_alignment_where_there_is_one(tmp_path: Path) -> None:
    clips = [Clip(name, "s", np.zeros(24000, np.float32), 24000, phones="hɛl") for name in ("a", "b")]
    write_shard(tmp_path / "recordings", 0, clips)
    cache_features(tmp_path / "recordings", tmp_path / "banks", bank_of)
    (tmp_path / "aligned").mkdir()
    line = json.dumps({"name": "b", "phones": "hɛ,l", "bounds": [0, 1, 2, 3, 4]})
    (tmp_path / "aligned" / "recordings.jsonl").write_text(line + "\n", encoding="utf-8")
    one, two = (found.record for found in read_aligned(tmp_path, "recordings", tmp_path / "banks"))
    assert (one.phones, one.bounds) == ("hɛl", ())
    assert (two.phones, two.bounds) == ("hɛ,l", (0, 1, 2, 3, 4))


def test_the_best_path_is_that_of_trying_all() -> None:
    rng = np.random.default_rng(0)
    kinds, optional, _ = states("hɛ l")
    scores = rng.standard_normal((6, len(kinds)))

    def walks(state: int, left: int) -> list[list[int]]:
        if left == 0:
            done = state == len(kinds) - 1 or (state == len(kinds) - 2 and optional[-1])
            return [[]] if done else []
        nexts = [state, state + 1] + ([state + 2] if state + 2 < len(kinds) and optional[state + 1] else [])
        return [[other, *rest] for other in nexts if other < len(kinds) for rest in walks(other, left - 1)]

    every = [[first, *rest] for first in (0, 1) for rest in walks(first, 5)]
    best = max(every, key=lambda walk: sum(scores[step, state] for step, state in enumerate(walk)))
    assert best_path(scores, optional).tolist() == best


def test_bounds_in_answers_become_samples_that_give_the_same_labels() -> None:
    record = ClipRecord("n", "s", 0, 24000, 24000, "en", "", "hɛl", ())
    example = Example(record, np.zeros((6 * 8 - 2, 80), np.float16), -320)
    found = with_bounds(example, "hɛl", [2, 4, 7, 8], 2)
    h, e, l = classes("hɛl")  # noqa: E741
    assert labels_of(found).tolist() == [0, 0, h, h, e, e, e, l, *[SILENCE] * 8]


def test_a_text_of_hundreds_of_phonemes_is_aligned() -> None:
    """The number of a state once overflowed eight bits."""
    answers = "hɛlɪd" * 60
    _, bounds, mean = aligned(sure(answers), answers)
    assert bounds == list(range(301))
    assert mean == pytest.approx(np.log(0.9))
