"""Muon for networks of many small matrices: those of one shape are turned together.

torch.optim.Muon takes one matrix after the other, some twenty launches each; for a network like ours that is a third of
a step on a GPU. The arithmetic here is the same (Jordan et al., 2024), over stacks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

SHARE = 0.2
"""A turned matrix is scaled to this root mean square, which is about that of AdamW's updates."""


class Muon(torch.optim.Muon):
    """torch.optim.Muon with ``adjust_lr_fn="match_rms_adamw"``, a stack at a time."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Take one step. ``closure`` is not supported and must be None."""
        assert closure is None
        for group in self.param_groups:
            weights: list[torch.Tensor] = []
            gradients: list[torch.Tensor] = []
            momenta: list[torch.Tensor] = []
            self._init_group(group, weights, gradients, momenta)
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
            alike = defaultdict(list)
            for weight, update in zip(weights, ahead, strict=True):
                alike[weight.shape].append((weight, update))
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for shape, members in alike.items():
                turned = turn(torch.stack([update for _, update in members]), group)
                rate = group["lr"] * SHARE * math.sqrt(max(shape))
                torch._foreach_add_([weight for weight, _ in members], list(turned.unbind()), alpha=-rate)


def turn(stack: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
    """Return the stack (n, A, B) with the singular values of every matrix brought near 1, by Newton and Schulz."""
    a, b, c = group["ns_coefficients"]
    tall = stack.shape[1] > stack.shape[2]
    x = (stack.transpose(1, 2) if tall else stack).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=group["eps"])
    for _ in range(group["ns_steps"]):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.transpose(1, 2) if tall else x).float()
