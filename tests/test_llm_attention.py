"""llm/attention.py: slopes, bias and cache against recordings and an explicit loop."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.llm.attention import Attention, KeyValueCache, score_bias, slopes

CPU = torch.device("cpu")


def explicit(attention: Attention, x: torch.Tensor) -> torch.Tensor:
    """The formula read aloud: one head, one query and one key at a time, in float64."""
    heads, d = attention.heads, attention.head_size
    q, k, v = (f(x).double()[0] for f in (attention.q_proj, attention.k_proj, attention.v_proj))
    rows = []
    for i in range(x.shape[1]):
        row = []
        for h, slope in enumerate(slopes(heads)):
            g = h // (heads // attention.groups)
            query, keys, values = q[i, h * d : h * d + d], k[: i + 1, g * d : g * d + d], v[: i + 1, g * d : g * d + d]
            scores = keys @ query / math.sqrt(d)
            scores -= slope * torch.tensor([math.sqrt(i - j) for j in range(i + 1)], dtype=torch.float64)
            row.append(scores.softmax(0) @ values)
        rows.append(torch.cat(row))
    return attention.o_proj(torch.stack(rows)[None].to(x.dtype))


@pytest.mark.parametrize("model", ["a", "b", "c"])
def test_slopes_and_bias_equal_the_recorded_ones(conformance: Path, model: str) -> None:
    vectors = np.load(conformance / "step1_lm" / model / "vectors.npz")
    result = torch.tensor(slopes(len(vectors["slopes"])))
    np.testing.assert_allclose(result.numpy(), vectors["slopes"], rtol=1e-6)
    bias = score_bias(result, torch.arange(12), 12)
    assert bias.dtype == torch.float32
    np.testing.assert_allclose(bias.numpy(), vectors["alibi_bias_12"], rtol=1e-6)


def test_forty_eight_heads_take_their_slopes_from_two_series() -> None:
    values = slopes(48)
    assert values[:32] == tuple(2.0 ** (-k / 4) for k in range(1, 33))
    assert values[32:] == tuple(2.0 ** (-(2 * j - 1) / 8) for j in range(1, 17))


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (8, 1), (4, 4)])
def test_attention_equals_an_explicit_loop(heads: int, groups: int) -> None:
    torch.manual_seed(0)
    attention = Attention(16 * heads, heads, groups)
    x = torch.randn(1, 9, 16 * heads)
    bias = score_bias(torch.tensor(slopes(heads)), torch.arange(9), 9)
    with torch.inference_mode():
        torch.testing.assert_close(attention(x, bias, None, 0, None), explicit(attention, x), atol=1e-6, rtol=0)


def test_a_row_of_the_bias_is_the_same_at_every_start() -> None:
    slope = torch.tensor(slopes(6))
    whole = score_bias(slope, torch.arange(20), 20)
    assert torch.equal(score_bias(slope, torch.arange(13, 20), 20), whole[:, 13:])
    wide = score_bias(slope, torch.tensor([7]), 256)
    assert torch.equal(wide[:, :, :20], whole[:, 7:8])
    assert torch.isinf(wide[:, :, 8:]).all()


def test_the_cache_returns_what_was_written_and_zeros_elsewhere() -> None:
    cache = KeyValueCache.empty(layers=2, batch=1, groups=2, head_size=4, capacity=300, device=CPU)
    assert cache.capacity == 384
    key, value = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4)
    keys, values = cache.write(1, torch.tensor([5, 6, 7]), key, value, 10)
    assert keys.shape == values.shape == (1, 2, 10, 4)
    assert torch.equal(keys[:, :, 5:8], key)
    assert torch.equal(values[:, :, 5:8], value)
    assert keys[:, :, :5].abs().sum() == keys[:, :, 8:].abs().sum() == 0
    untouched, _ = cache.write(0, torch.tensor([0]), key[:, :, :1], value[:, :, :1], 10)
    assert untouched[:, :, 1:].abs().sum() == 0


def test_a_row_of_the_cache_is_a_view_and_begins_with_what_another_holds() -> None:
    cache = KeyValueCache.empty(layers=2, batch=3, groups=2, head_size=4, capacity=10, device=CPU)
    key, value = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    cache.row(1).write(1, torch.arange(6), key, value, 6)
    assert torch.equal(cache.cells[1, 0, 1:2, :, :6], key)
    assert cache.cells[:, :, [0, 2]].abs().sum() == 0
    cache.row(2).begin_with(cache.row(1).first(4))
    assert torch.equal(cache.cells[1, 1, 2:3, :, :4], value[:, :, :4])
    assert cache.cells[:, :, 2, :, 4:].abs().sum() == 0
