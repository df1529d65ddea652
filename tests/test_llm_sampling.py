"""llm/sampling.py against the recorded rule and distributions, and the constrained head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.errors import InvalidInput, WeightsError
from stepaudio.llm import sampling
from stepaudio.llm.sampling import SpeechHead
from stepaudio.tokens import SpeechVocabulary
from stepaudio.types import SamplingParams

VOCABULARY = SpeechVocabulary(range(40, 1064), range(1064, 2000), end=3)
SIZE = 2040


def recorded(conformance: Path) -> list[tuple[dict, dict[str, torch.Tensor]]]:
    folder = conformance / "sampling"
    arrays = np.load(folder / "cases.npz")
    cases = json.loads((folder / "cases.json").read_text("utf-8"))
    names = ("ids", "logits_in", "logits_out", "probs_t07", "probs_t07_top50")
    return [(c, {n: torch.from_numpy(arrays[f"{c['case']}_{n}"]) for n in names}) for c in cases]


def test_the_repetition_rule_is_bit_exact_in_every_recorded_case(conformance: Path) -> None:
    banned = 0
    for case, arrays in recorded(conformance):
        logits = arrays["logits_in"].clone()
        result = sampling.ban_repetition(logits, torch.arange(logits.shape[-1]), arrays["ids"])
        assert torch.equal(result, arrays["logits_out"]), case["desc"]
        assert torch.equal(logits, arrays["logits_in"]), "the argument was written into"
        new = (result == float("-inf")) & (arrays["logits_in"] != float("-inf"))
        assert new.nonzero().tolist() == case["banned"]
        banned += len(case["banned"])
    assert banned > 5


@pytest.mark.parametrize(("name", "top_k"), [("probs_t07", 0), ("probs_t07_top50", 50)])
def test_distributions_equal_the_recorded_ones(conformance: Path, name: str, top_k: int) -> None:
    for case, arrays in recorded(conformance):
        result = sampling.warp(arrays["logits_out"], SamplingParams(temperature=0.7, top_k=top_k)).softmax(-1)
        torch.testing.assert_close(result, arrays[name], atol=1e-6, rtol=0)
        if top_k:
            assert (result > 0).sum(-1).tolist() == case["support_top50"]


def test_top_p_keeps_the_smallest_set_that_fills_it() -> None:
    logits = torch.tensor([[0.4, 0.05, 0.3, 0.25]]).log()
    for top_p, kept in ((0.3, [0]), (0.41, [0, 2]), (0.69, [0, 2]), (0.71, [0, 2, 3]), (0.999, [0, 1, 2, 3])):
        result = sampling.warp(logits, SamplingParams(temperature=1.0, top_k=0, top_p=top_p))
        assert result.isfinite()[0].nonzero()[:, 0].tolist() == kept


def test_top_p_sees_what_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.05, 0.3, 0.25]]).log()
    result = sampling.warp(logits, SamplingParams(temperature=1.0, top_k=2, top_p=0.55))
    assert result.isfinite()[0].tolist() == [True, False, False, False]


def test_draws_follow_the_distribution() -> None:
    """40,000 draws: a frequency is off by 0.0025 at one sigma, so 0.0125 is five."""
    logits = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log().repeat(40_000, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = sampling.draw(logits, SamplingParams(temperature=1.0, top_k=0), generator)[:, 0]
    frequency = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(frequency, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.0125, rtol=0)
    assert frequency[3] == 0


def test_draws_depend_on_the_generator_alone() -> None:
    logits = torch.randn(1, 500, generator=torch.Generator().manual_seed(5))
    params = SamplingParams()

    def sequence(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [int(sampling.draw(logits, params, generator)) for _ in range(20)]

    torch.manual_seed(1)
    first, state = sequence(7), torch.get_rng_state()
    torch.manual_seed(2)
    assert sequence(7) == first
    assert sequence(8) != first
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


def test_temperature_zero_is_greedy_and_draws_nothing() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert sampling.draw(logits, SamplingParams(temperature=0), generator).tolist() == [[1]]
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("temperature", [0.01, 10.0])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.tensor([[500.0, -500.0, 499.0]])
    result = sampling.warp(logits, SamplingParams(temperature=temperature)).softmax(-1)
    assert result.isfinite().all()
    assert result.argmax() == 0


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (SamplingParams(temperature=-1), "The temperature is -1; it must be 0 .greedy. or 0.01 to 10.0."),
        (SamplingParams(temperature=0.001), "The temperature is 0.001"),
        (SamplingParams(temperature=float("nan")), "The temperature is nan"),
        (SamplingParams(top_k=-1), "top_k is -1; it must be 0"),
        (SamplingParams(top_p=0.0), "top_p is 0.0; it must be above 0 and at most 1"),
        (SamplingParams(top_p=1.5), "top_p is 1.5"),
    ],
)
def test_parameters_out_of_range_are_refused(params: SamplingParams, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        sampling.check(params)


def legal(drawn: int) -> list[int]:
    ids = list(VOCABULARY.legal_ids(drawn % 5))
    return [*ids, VOCABULARY.end] if drawn and drawn % 5 == 0 else ids


@pytest.mark.parametrize("drawn", range(11))
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_slices_of_the_head_equal_masking_the_full_logits(drawn: int, top_p: float) -> None:
    torch.manual_seed(drawn)
    weight, hidden = torch.randn(SIZE, 32), torch.randn(1, 32)
    params = SamplingParams(temperature=0.7, top_k=50, top_p=top_p)
    recent = torch.tensor([[*range(1, 9), *legal(drawn)[:1] * 2]])  # the newest id stands twice

    full = sampling.ban_repetition(hidden @ weight.T, torch.arange(SIZE), recent)
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[legal(drawn)] = False
    expected = sampling.warp(full.masked_fill(mask, float("-inf")), params).softmax(-1)

    logits, ids = SpeechHead(weight, VOCABULARY).logits(hidden, drawn)
    probabilities = sampling.warp(sampling.ban_repetition(logits, ids, recent), params).softmax(-1)
    result = torch.zeros(1, SIZE).index_copy_(1, ids, probabilities)
    assert sorted(ids.tolist()) == sorted(legal(drawn))
    assert result[0, recent[0, -1]] == 0
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    with pytest.raises(WeightsError, match="The tokenizer has 2000 ids or more, the language model only 1999"):
        SpeechHead(torch.zeros(1999, 4), VOCABULARY)
