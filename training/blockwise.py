"""The language model's attention in training on a CPU: what stepaudio.llm.attention does, in half the time.

Queries go by blocks, which look at no key behind them, in bfloat16; their shares are kept for the way back. torch's own
attention takes a mask as it is, so that half of what it computes is masked, and on the way back it computes all again.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor

from stepaudio.llm.attention import Attention, KeyValueCache

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
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(one, dtype=torch.float32) for one in (key, value))
        for start, share in zip(range(0, length, BLOCK), shares, strict=True):
            stop = min(length, start + BLOCK)
            asked, got, lost = (one[:, :, start:stop].reshape(count, -1, size) for one in (query, context, gradient))
            of_value[:, :stop] += share.transpose(1, 2) @ lost
            kept = (lost * got).sum(-1, keepdim=True).expand(-1, -1, stop)
            of_scores = torch.baddbmm(kept, lost, value[:, :stop].transpose(1, 2), beta=-1).mul_(share)
            of_scores.mul_(size**-0.5)
            of_query[:, :, start:stop] = (of_scores @ key[:, :stop]).view(count, shared, -1, size)
            of_key[:, :stop] += of_scores.transpose(1, 2) @ asked
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None


def forward(
    self: Attention, x: Tensor, bias: Tensor, cache: KeyValueCache | None, layer: int, positions: Tensor | None
) -> Tensor:
    """Return what Attention.forward does for a whole sequence; under autocast, without a cache."""
    batch, length, _ = x.shape

    def folded(projected: Tensor, heads: int) -> Tensor:
        return projected.view(batch, length, heads, self.head_size).transpose(1, 2)

    query = folded(self.q_proj(x), self.heads).reshape(batch * self.groups, -1, length, self.head_size)
    key, value = (
        folded(one(x), self.groups).reshape(batch * self.groups, length, self.head_size)
        for one in (self.k_proj, self.v_proj)
    )
    context = _Attended.apply(query.bfloat16(), key.bfloat16(), value.bfloat16(), bias.bfloat16())
    context = context.view(batch, self.heads, length, self.head_size).transpose(1, 2)
    joined: Tensor = self.o_proj(context.reshape(batch, length, -1))
    return joined


def hasten(model: torch.nn.Module) -> None:
    """Let every attention of a model compute as above."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.forward = MethodType(forward, module)  # type: ignore[method-assign]
