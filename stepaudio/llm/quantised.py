"""Weights of a projection in 4 or 8 bits: kept packed, and unpacked for each product that cannot be had otherwise.

That takes a third or half of the memory of bfloat16, and time: such a product first writes the matrix out. Where
several sequences are decoded side by side they share that. What can be multiplied as it is packed saves time, too,
because a decode step takes as long as its weights take to be read: see ``product``.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_KERNEL_GROUPS, _KERNEL_ROWS = (32, 64, 128, 256), 16
"""Sizes of groups, and multiples of rows, that torch's kernel for 4 bits takes."""

_MIDDLE = 8
"""What that kernel takes off every number of 4 bits."""


def plain(weight: Tensor | Packed) -> Tensor:
    """Return a weight (in, out) whose transpose is contiguous, as kernels of our own read it; TypeError for others."""
    if isinstance(weight, Packed) or not weight.t().is_contiguous():
        raise TypeError("Kernels of our own read plain weights only.")
    return weight


class Packed(ABC):
    """A matrix (out, in), each of whose rows is packed by itself, so that rows can be cut apart and put together."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @abstractmethod
    def dense(self) -> Tensor:
        """Return the matrix as numbers, (out, in), a new tensor."""

    def product(self, x: Tensor) -> Tensor:
        """Return x (B, in) times the matrix, (B, out), a new tensor: a product of a decode step.

        The matrix and the device decide how, never B: a sequence that is decoded beside many others must not be
        computed in another precision than alone.
        """
        return torch.mm(x, self.dense().t())

    @abstractmethod
    def rows(self, first: int, last: int) -> Self:
        """Return rows ``first`` .. ``last`` - 1, as views."""

    @classmethod
    @abstractmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Return matrices of as many columns one below another."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """How much memory it takes."""


@dataclass(frozen=True, eq=False)
class Int4Groups(Packed):
    """4 bits a number; ``group`` numbers of a row share a scale and a zero: (q - zero) * scale.

    codes: uint8 (out, in / 2), the first number of two in the low half. scale, zero: (out, in / group), of the type
    that the products have.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], 2 * self.codes.shape[1]

    def dense(self) -> Tensor:
        numbers = torch.stack((self.codes & 15, self.codes >> 4), dim=-1)  # (out, in / 2, 2)
        grouped = numbers.view(*self.scale.shape, -1).to(self.scale.dtype)
        return grouped.sub_(self.zero[..., None]).mul_(self.scale[..., None]).view(self.shape)

    def rows(self, first: int, last: int) -> Self:
        return type(self)(self.codes[first:last], self.scale[first:last], self.zero[first:last])

    def product(self, x: Tensor) -> Tensor:
        """Return x (B, in) times the matrix, (B, out); on a CPU the rows meet the codes themselves, in bfloat16.

        So an eighth of what float32 takes is read (at 3072 x 8192 measured 15 to 30 times as fast as unpacking first at
        one row, 1.7 times at 64). For that the codes lie in memory a second time, in the order of torch's kernel, from
        the first such product on.
        """
        group = self.codes.shape[1] * 2 // self.scale.shape[1]
        fits = group in _KERNEL_GROUPS and self.codes.shape[0] % _KERNEL_ROWS == 0
        if x.device.type != "cpu" or not fits:
            return super().product(x)
        codes, scales_and_zeros = self._for_kernel
        found: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), codes, group, scales_and_zeros)
        return found.to(x.dtype)

    @functools.cached_property
    def _for_kernel(self) -> tuple[Tensor, Tensor]:
        """The codes in the kernel's order, and scale and zero bfloat16 (in / group, out, 2): (q - 8) * scale + zero."""
        numbers = torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(1).to(torch.int32)
        zero = (_MIDDLE - self.zero.float()) * self.scale.float()
        both = torch.stack((self.scale.float(), zero), dim=-1).transpose(0, 1)
        tiles = 1  # of no account on a CPU
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, tiles), both.to(torch.bfloat16).contiguous()

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        codes, scales, zeros = ([getattr(p, name) for p in parts] for name in ("codes", "scale", "zero"))
        return cls(torch.cat(codes), torch.cat(scales), torch.cat(zeros))

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + self.zero.nbytes


class QuantisedLinear(nn.Module):
    """A linear layer without bias whose weight is packed; takes the place of an nn.Linear."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self.packed = packed

    @property
    def out_features(self) -> int:
        return self.packed.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of x (..., in)."""
        return F.linear(x, self.packed.dense())


def joined_rows(layers: Sequence[QuantisedLinear]) -> Packed:
    """Return the weights of layers one below another, and make each layer's a view of its part."""
    first = layers[0].packed
    whole = type(first).cat([layer.packed for layer in layers])
    start = 0
    for layer in layers:
        stop = start + layer.out_features
        layer.packed = whole.rows(start, stop)
        start = stop
    return whole
