"""llm/sampling.py against the recorded rule and distributions, and the constrained head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.errors import InvalidInput, WeightsError
from stepaudio.llm import sampling
from stepaudio.llm.sampling import REPETITION_WINDOW, UNKNOWN_ID, Drawer, SpeechHead
from stepaudio.tokens import SpeechVocabulary
from stepaudio.types import SamplingParams

VOCABULARY = SpeechVocabulary(range(40, 1064), range(1064, 2000), end=3)
SIZE = 2040


def drawer(logits: torch.Tensor, params: SamplingParams, ids: torch.Tensor | None = None) -> Drawer:
    """A drawer whose columns stand for ``ids`` (by default: their own numbers), with these logits."""
    rows, columns = logits.shape
    result = Drawer(torch.arange(columns) if ids is None else ids, rows, params)
    result.logits.copy_(logits)
    return result


def without_repetition(logits: torch.Tensor, ids: torch.Tensor, recent: torch.Tensor) -> torch.Tensor:
    """The logits after the rule, for the columns ``ids``, when ``recent`` (B, any) are all the ids so far."""
    one = drawer(logits, SamplingParams(), ids)
    window = recent[:, -REPETITION_WINDOW:]
    one.recent.fill_(UNKNOWN_ID)
    one.recent[:, REPETITION_WINDOW - window.shape[1] :] = window
    one.ban_repetition()
    return one.logits


def warped(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    one = drawer(logits, params)
    one.warp()
    return one.logits


def draw(logits: torch.Tensor, params: SamplingParams, uniforms: torch.Tensor | None = None) -> torch.Tensor:
    one = drawer(logits, params)
    if uniforms is not None:
        one.uniform.copy_(uniforms[:, None])
    newest = torch.zeros(len(logits), dtype=torch.int64)
    one.draw(newest)
    return newest


def recorded(conformance: Path) -> list[tuple[dict, dict[str, torch.Tensor]]]:
    folder = conformance / "sampling"
    arrays = np.load(folder / "cases.npz")
    cases = json.loads((folder / "cases.json").read_text("utf-8"))
    names = ("ids", "logits_in", "logits_out", "probs_t07", "probs_t07_top50")
    return [(c, {n: torch.from_numpy(arrays[f"{c['case']}_{n}"]) for n in names}) for c in cases]


def test_the_repetition_rule_is_bit_exact_in_every_recorded_case(conformance: Path) -> None:
    banned = 0
    for case, arrays in recorded(conformance):
        logits = arrays["logits_in"]
        result = without_repetition(logits, torch.arange(logits.shape[-1]), arrays["ids"])
        assert torch.equal(result, arrays["logits_out"]), case["desc"]
        new = (result == float("-inf")) & (arrays["logits_in"] != float("-inf"))
        assert new.nonzero().tolist() == case["banned"]
        banned += len(case["banned"])
    assert banned > 5


@pytest.mark.parametrize(("name", "top_k"), [("probs_t07", 0), ("probs_t07_top50", 50)])
def test_distributions_equal_the_recorded_ones(conformance: Path, name: str, top_k: int) -> None:
    for case, arrays in recorded(conformance):
        result = warped(arrays["logits_out"], SamplingParams(temperature=0.7, top_k=top_k)).softmax(-1)
        torch.testing.assert_close(result, arrays[name], atol=1e-6, rtol=0)
        if top_k:
            assert (result > 0).sum(-1).tolist() == case["support_top50"]


def test_top_p_keeps_the_smallest_set_that_fills_it() -> None:
    logits = torch.tensor([[0.4, 0.05, 0.3, 0.25]]).log()
    for top_p, kept in ((0.3, [0]), (0.41, [0, 2]), (0.69, [0, 2]), (0.71, [0, 2, 3]), (0.999, [0, 1, 2, 3])):
        result = warped(logits, SamplingParams(temperature=1.0, top_k=0, top_p=top_p))
        assert result.isfinite()[0].nonzero()[:, 0].tolist() == kept


def test_top_p_sees_what_top_k_left() -> None:
    logits = torch.tensor([[0.4, 0.05, 0.3, 0.25]]).log()
    result = warped(logits, SamplingParams(temperature=1.0, top_k=2, top_p=0.55))
    assert result.isfinite()[0].tolist() == [True, False, False, False]


def test_draws_follow_the_distribution() -> None:
    """40,000 draws: a frequency is off by 0.0025 at one sigma, so 0.0125 is five."""
    logits = torch.tensor([[0.5, 0.3, 0.2, 0.0]]).log().repeat(40_000, 1)
    params = SamplingParams(temperature=1.0, top_k=0)
    drawn = draw(logits, params, sampling.uniforms(0, len(logits)))
    frequency = drawn.bincount(minlength=4) / len(drawn)
    torch.testing.assert_close(frequency, torch.tensor([0.5, 0.3, 0.2, 0.0]), atol=0.0125, rtol=0)
    assert frequency[3] == 0


@pytest.mark.parametrize("uniform", [0.0, 0.25, 0.75, 1 - 2**-53])
def test_what_is_ruled_out_is_never_drawn_at_the_edges(uniform: float) -> None:
    logits = torch.full((1, 9), float("-inf"))
    logits[0, [2, 5]] = torch.tensor([0.25, 0.75]).log()
    result = draw(logits, SamplingParams(temperature=1.0, top_k=0), torch.tensor([uniform], dtype=torch.float64))
    assert result.tolist() == [2 if uniform < 0.25 else 5]


def test_the_random_numbers_of_a_seed_are_its_own() -> None:
    torch.manual_seed(1)
    first, state = sampling.uniforms(7, 20), torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(sampling.uniforms(7, 30)[:20], first)
    assert not torch.equal(sampling.uniforms(8, 20), first)
    assert first.dtype == torch.float64
    assert ((first >= 0) & (first < 1)).all()


def test_temperature_zero_is_greedy() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert draw(logits, SamplingParams(temperature=0)).tolist() == [1]


@pytest.mark.parametrize("temperature", [0.01, 10.0])
def test_extreme_temperatures_stay_finite(temperature: float) -> None:
    logits = torch.tensor([[500.0, -500.0, 499.0]])
    result = warped(logits, SamplingParams(temperature=temperature)).softmax(-1)
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

    full = without_repetition(hidden @ weight.T, torch.arange(SIZE), recent)
    mask = torch.ones(SIZE, dtype=torch.bool)
    mask[legal(drawn)] = False
    expected = warped(full.masked_fill(mask, float("-inf")), params).softmax(-1)

    head = SpeechHead(weight, VOCABULARY)
    choice = head.choices[head.choice(drawn)]
    ids = choice.ids
    probabilities = warped(without_repetition(hidden @ choice.weight, ids, recent), params).softmax(-1)
    result = torch.zeros(1, SIZE).index_copy_(1, ids, probabilities)
    assert sorted(ids.tolist()) == sorted(legal(drawn))
    assert result[0, recent[0, -1]] == 0
    torch.testing.assert_close(result, expected, atol=1e-6, rtol=0)


def test_a_vocabulary_larger_than_the_model_is_refused() -> None:
    with pytest.raises(WeightsError, match="The tokenizer has 2000 ids or more, the language model only 1999"):
        SpeechHead(torch.zeros(1999, 4), VOCABULARY)
