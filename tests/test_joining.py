"""Passages joined: what is cut, what is put in, what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio.joining import MOST_GAIN, MOST_QUIET_SECONDS, Joiner, joined, levelled, loudness
from stepaudio.types import Waveform

RATE = 24_000


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    t = np.arange(round(seconds * RATE)) / RATE
    return (level * np.sin(2 * np.pi * 200 * t)).astype(np.float32)


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE), np.float32)


def join(parts: list[np.ndarray], pauses: list[float]) -> np.ndarray:
    return joined([Waveform(part, RATE) for part in parts], pauses).samples


def gap(samples: np.ndarray) -> float:
    """Return the longest silence within the sound, in seconds."""
    loud = np.flatnonzero(np.abs(samples) > 0.02)
    return float(np.diff(loud).max()) / RATE


def test_one_passage_stays_as_it_is():
    whole = Waveform(np.concatenate((silence(1), tone(1), silence(1))), RATE)
    assert joined([whole], [0.0]) is whole


@pytest.mark.parametrize("inner", [0.0, 0.1, 0.25])
@pytest.mark.parametrize("pause", [0.05, 0.35, 0.6])
def test_the_pause_is_the_one_asked_for_whatever_silence_the_passages_have(inner, pause):
    first = np.concatenate((silence(0.5), tone(1), silence(inner)))
    second = np.concatenate((silence(inner), tone(1), silence(0.5)))
    made = join([first, second], [pause, 0.0])
    assert gap(made) == pytest.approx(pause, abs=0.03)
    # The outer edges are those of the passages.
    assert np.array_equal(made[: len(silence(0.5))], silence(0.5))
    assert np.flatnonzero(made)[-1] < len(made) - RATE * 0.49


def test_the_silence_before_each_of_many_passages_is_cut():
    parts = [np.concatenate((silence(0.25), tone(0.5))) for _ in range(4)]
    loud = np.flatnonzero(np.abs(join(parts, [0.35] * 4)) > 0.02)
    gaps = np.diff(loud) / RATE
    assert gaps[gaps > 0.1] == pytest.approx([0.35] * 3, abs=0.03)


def test_more_silence_than_is_cut_makes_the_pause_longer_but_nothing_is_held_back_for_ever():
    first, second = np.concatenate((tone(1), silence(1.0))), np.concatenate((silence(1.0), tone(1)))
    assert gap(join([first, second], [0.35, 0.0])) == pytest.approx(2.0 - 2 * MOST_QUIET_SECONDS, abs=0.1)
    joiner = Joiner(RATE)
    given_back = joiner.push(first)
    assert len(first) - len(given_back) <= round(MOST_QUIET_SECONDS * RATE)


def test_speech_that_touches_the_edges_is_kept_but_for_the_fade():
    first, second = tone(1.003), tone(0.7)
    made = join([first, second], [0.35, 0.0])
    assert len(made) == len(first) + len(second) + round(0.35 * RATE)
    np.testing.assert_array_equal(made[: len(first) - 200], first[:-200])
    np.testing.assert_array_equal(made[-len(second) + 200 :], second[200:])


def test_no_sample_jumps_where_passages_meet():
    """Bound: no step is larger than the largest one within the tone itself."""
    parts = [tone(0.5037), tone(0.6011), tone(0.4)]  # all end away from zero
    assert min(abs(part[-1]) for part in parts[:2]) > 0.1
    made = join(parts, [0.35, 0.05, 0.0])
    assert np.abs(np.diff(made)).max() <= np.abs(np.diff(tone(1))).max() * 1.02


def test_passages_become_equally_loud_within_limits():
    quiet, middle, loud = tone(1, 0.2), tone(1, 0.3), tone(1, 0.4)
    made = [loudness(part) for part in levelled([quiet, middle, loud])]
    assert made == pytest.approx([loudness(middle)] * 3, rel=1e-3)
    whisper = levelled([tone(1, 0.01), middle, middle])[0]
    assert loudness(whisper) == pytest.approx(MOST_GAIN * loudness(tone(1, 0.01)), rel=1e-3)
    peaked = tone(1, 0.02)
    peaked[100] = 0.9  # a click: the gain stops where it would clip
    assert np.abs(levelled([peaked, middle, middle])[0]).max() <= 0.99
    np.testing.assert_array_equal(levelled([silence(1), middle])[0], silence(1))


def test_pauses_within_a_passage_do_not_make_it_sound_quieter():
    assert loudness(np.concatenate((tone(1), silence(3), tone(1)))) == pytest.approx(loudness(tone(2)), rel=1e-2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=30), st.integers(0, 2**32 - 1))
def test_how_the_sound_is_portioned_changes_nothing(sizes, seed):
    rng = np.random.default_rng(seed)
    sound = np.concatenate((tone(0.4), silence(0.3), tone(0.5), silence(0.1), tone(0.3), silence(0.4)))
    sound *= rng.uniform(0.5, 1)
    ends = [0.55, 1.25]
    whole = Joiner(RATE)
    for end in ends:
        whole.join_at(round(end * RATE), 0.35)
    expected = np.concatenate((whole.push(sound), whole.finish()))
    portioned, ready, start = Joiner(RATE), [], 0
    marks = [round(end * RATE) for end in ends]
    for size in [*sizes, len(sound)]:
        part = sound[start : start + size]
        while marks and marks[0] <= start + len(part):
            portioned.join_at(marks.pop(0), 0.35)
        ready.append(portioned.push(part))
        start += len(part)
    np.testing.assert_array_equal(np.concatenate([*ready, portioned.finish()]), expected)
