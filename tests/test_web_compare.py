"""The tab "Compare": what it opens with is what the user just looked at, beside what that was made from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from stepaudio.types import Waveform
from tests.conftest import voice
from tests.test_web_controls import engine, page, recorder, service, start, studio, upload  # noqa: F401 - fixtures


def samples(studio, elem_id: str) -> np.ndarray:  # noqa: F811
    return soundfile.read(Path(studio.value(elem_id)), dtype="float32")[0]


def assert_compared(studio, first: Waveform, second: Waveform) -> None:  # noqa: F811
    np.testing.assert_allclose(samples(studio, "sound-a"), first.samples, atol=1e-4)
    np.testing.assert_allclose(samples(studio, "sound-b"), second.samples, atol=1e-4)


ADA = voice(1.0, pitch=200.0)  # the preset


def test_a_clone_is_compared_with_its_own_reference_not_with_the_newest_one(studio):  # noqa: F811
    for number, chosen in enumerate(("new", "preset:ada", "new"), 1):
        studio.fill(voice=chosen, seed=number, new_seed=False).press("generate")
    studio.press("compare-this")
    assert_compared(studio, voice(1.0), voice(1.0, seed=3))


def test_the_take_that_is_picked_is_compared(studio):  # noqa: F811
    studio.fill(takes=3, seed=10, new_seed=False).press("generate")
    studio.fill(takes_made=1).press("takes-made", "input")
    studio.press("compare-this")
    assert_compared(studio, voice(1.0), voice(1.0, seed=11))
    other = studio.fill(compare_first=None, compare_second=None).press("language", "input")  # opened without a choice
    assert len(other["compare-first"]["choices"]) == 4
    assert_compared(studio, voice(1.0), voice(1.0, seed=11))


def test_a_reference_that_many_takes_have_pushed_off_the_shelf_is_back_for_its_clone(studio):  # noqa: F811
    studio.fill(voice="preset:ada", takes=16, new_seed=False)
    for seed in (100, 200):
        studio.fill(seed=seed).press("generate")
    studio.fill(takes_made=15).press("takes-made", "input")
    studio.press("compare-this")
    assert_compared(studio, ADA, voice(1.0, seed=215))
    chosen = studio.fill(compare_second=studio.value("compare-first")).press("compare-second", "input")
    numbers = [number for _, number in chosen["compare-first"]["choices"]]
    assert numbers == sorted(numbers)
    assert_compared(studio, ADA, ADA)


def test_an_edit_is_compared_with_the_original_of_its_own_chain(studio):  # noqa: F811
    studio.fill(edit_seed=7, edit_new_seed=False).press("apply")
    studio.fill(voice="preset:ada", seed=8, new_seed=False).press("generate")
    studio.fill(edit_seed=9).press("apply")  # a second step from the upload, behind a clone of Ada
    studio.fill(compare_first=None, compare_second=None).press("language", "input")
    assert_compared(studio, voice(1.0), voice(1.0, seed=9))


def test_compare_is_gone_to_only_once_it_holds_what_was_asked_for(studio):  # noqa: F811
    """Going there shows what is chosen there: were that the choice of before, it could come last and stay."""
    studio.press("generate")
    outputs = list(studio.press("compare-this"))
    assert outputs.index("tabs") > outputs.index("sound-b")
