"""The language model's attention in training on a CPU: what stepaudio.llm.attention does, in half the time.

Queries go by blocks, which look at no key behind them, in bfloat16; their shares are kept for the way back. torch's own
attention takes a mask as it is, so that half of what it computes is masked, and on the way back it computes all again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stepaudio.llm.attention import Attention

BLOCK = 128


class _Attended(torch.autograd.Function):
    """Context (B G, R, T, d) of queries of that shape, keys and values (B G, T, d) and a bias (G R, T, T)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        count, shared, length, size = query.shape
        groups = len(bias) // shared
        context, shares = torch.empty_like(query), []
        for start in range(0, length, BLOCK):
            stop = min(length, start + BLOCK)
            asked = query[:, :, start:stop].reshape(count, -1, size)
            added = bias[:, start:stop, :stop].reshape(groups, -1, stop).repeat(count // groups, 1, 1)
            scores = added.baddbmm_(asked, key[:, :stop].transpose(1, 2), alpha=size**-0.5)
            shares.append(scores.softmax(-1))
            context[:, :, start:stop] = (shares[-1] @ value[:, :stop]).view(count, shared, -1, size)
        ctx.save_for_backward(query, key, value, context, *shares)
        return context

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, context, *shares = ctx.saved_tensors
        (gradient,) = gradients
        count, shared, length, size = query.shape
        scale = size**-0.5
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(one, dtype=torch.float32) for one in (key, value))
        for start, share in zip(range(0, length, BLOCK), shares, strict=True):
            stop = min(length, start + BLOCK)
            asked, got, lost = (one[:, :, start:stop].reshape(count, -1, size) for one in (query, context, gradient))
            of_value[:, :stop] += share.transpose(1, 2) @ lost
            kept = (lost * got).sum(-1, keepdim=True).expand(-1, -1, stop)
            of_scores = torch.baddbmm(kept, lost, value[:, :stop].transpose(1, 2), beta=-scale, alpha=scale).mul_(share)
            of_query[:, :, start:stop] = (of_scores @ key[:, :stop]).view(count, shared, -1, size)
            of_key[:, :stop] += of_scores.transpose(1, 2) @ asked
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None


def attend(folded: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Return what Attention.attend does for a whole sequence, in bfloat16."""
    query = folded.unflatten(2, (-1, key.shape[2])).flatten(0, 1)  # (B G, R, T, d)
    context: Tensor = _Attended.apply(
        query.bfloat16(), key.flatten(0, 1).bfloat16(), value.flatten(0, 1).bfloat16(), bias.bfloat16()
    )
    return context.view_as(folded)


def hasten(model: nn.Module) -> None:
    """Let every attention of a model compute as above. Not for a model with a cache."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.attend = attend  # type: ignore[method-assign]
