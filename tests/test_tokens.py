"""tokens.py against the recorded interleaving and rows, and its properties."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stepaudio import tokens
from stepaudio.errors import WeightsError
from tests.token_kit import deinterleave, obeys_cycle, pad_to_groups_as_upstream

REAL_AUDIO_OFFSET = 65536


def load(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / "tokens_prompts" / name).read_text("utf-8"))


def random_codes(seed: int, linguistic: int, semantic: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 1024, linguistic), rng.integers(0, 4096, semantic)


def test_interleave_equals_every_recorded_case(conformance: Path) -> None:
    cases = load(conformance, "interleave.json")
    assert len(cases) == 23
    for case in cases:
        result = tokens.interleave(case["vq02"], case["vq06"])
        assert (result.numbers + REAL_AUDIO_OFFSET).tolist() == case["vocoder_prompt_ids"]
        assert "".join(f"<audio_{n}>" for n in result.numbers) == case["llm_prompt_str"]


def test_rows_equal_every_recorded_case_with_upstream_padding(conformance: Path) -> None:
    cases = load(conformance, "reshape.json")
    assert len(cases) == 23
    for case in cases:
        result = tokens.rows(pad_to_groups_as_upstream(case["seq"]))
        expected = [] if case["out"] == "TypeError" else case["out"]
        assert result.tolist() == expected
        assert result.dtype == np.int64
        assert result.shape == (len(expected), 2)


@pytest.mark.parametrize(("linguistic", "semantic"), [(0, 0), (1, 3), (2, 2), (2, 3), (17, 25), (24, 40), (100, 9)])
def test_deinterleave_undoes_interleave_up_to_whole_groups(linguistic: int, semantic: int) -> None:
    first, second = random_codes(1, linguistic, semantic)
    result = tokens.interleave(first, second)
    assert result.groups == min(linguistic // 2, semantic // 3)
    assert obeys_cycle(result.numbers)
    back_first, back_second = deinterleave(result)
    assert back_first.tolist() == first[: 2 * result.groups].tolist()
    assert back_second.tolist() == second[: 3 * result.groups].tolist()


def test_codes_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="linguistic codes run from 0 to 1024"):
        tokens.interleave([0, 1024], [0, 0, 0])
    with pytest.raises(ValueError, match="semantic codes run from -1 to 0"):
        tokens.interleave([0, 0], [0, -1, 0])


def test_incomplete_groups_are_cut_by_the_product_and_refused_by_rows() -> None:
    numbers = np.arange(13)
    assert tokens.cut_to_groups(numbers).tolist() == list(range(10))
    assert tokens.cut_to_groups([1, 2, 3, 4]).tolist() == []
    with pytest.raises(ValueError, match="13 numbers are not whole groups of 5"):
        tokens.rows(numbers)


def test_functions_do_not_write_into_their_arguments() -> None:
    numbers = np.arange(10)
    copy = numbers.copy()
    for function in (tokens.rows, tokens.cut_to_groups):
        function(numbers)[...] = -1
    assert numbers.tolist() == copy.tolist()


def test_obeys_cycle_finds_one_stray_number() -> None:
    good = tokens.interleave(*random_codes(2, 20, 30)).numbers
    assert obeys_cycle(good)
    for place, stray in ((0, 1024), (2, 1023), (49, 5120), (5, -1)):
        bad = good.copy()
        bad[place] = stray
        assert not obeys_cycle(bad)


def test_rates_agree_with_each_other() -> None:
    assert pytest.approx(0.12) == tokens.GROUP_SECONDS
    assert pytest.approx(41.6667, abs=1e-3) == tokens.IDS_PER_SECOND


REAL = tokens.SpeechVocabulary(range(65536, 66560), range(66560, 70656), end=3)
SMALL = tokens.SpeechVocabulary(range(700, 710), range(400, 420), end=3)


def test_the_real_vocabulary_shifts_every_number_alike() -> None:
    numbers = np.arange(5120)
    assert (REAL.ids(numbers) - numbers == REAL_AUDIO_OFFSET).all()
    assert [REAL.legal_ids(phase) for phase in range(5)] == [REAL.linguistic] * 2 + [REAL.semantic] * 3
    with pytest.raises(ValueError, match="A phase is"):
        REAL.legal_ids(5)


def test_a_small_vocabulary_maps_its_numbers_there_and_back() -> None:
    numbers = np.array([0, 9, 1024, 1043, 5])
    ids = SMALL.ids(numbers)
    assert ids.tolist() == [700, 709, 400, 419, 705]
    assert SMALL.numbers(ids).tolist() == numbers.tolist()
    assert SMALL.ids([]).tolist() == []


@pytest.mark.parametrize("stray", [10, 1044, 5120, -1])
def test_a_number_that_a_vocabulary_lacks_is_a_misfit_of_weights(stray: int) -> None:
    with pytest.raises(WeightsError, match=f"speech number {stray} is unknown"):
        SMALL.ids([0, stray])
