"""Weights packed by bitsandbytes when they are loaded: 8 bits a number, or 4 bits (NF4).

bitsandbytes is not among the requirements: only who chooses such a variant needs it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from stepaudio.errors import WeightsError
from stepaudio.llm.network import Decoder, DecoderLayer
from stepaudio.llm.quantised import Packed, QuantisedLinear

LIBRARY = "bitsandbytes"
Kind = Literal["int8", "nf4"]
_BLOCK = 64
_MOST_INT8 = 127
_WHOLE_COLUMNS = 64
"""torch's kernel reads whole vectors: with 8 or 24 columns it reads past the end (seen to crash); with multiples of 16
it does not."""


def _library() -> Any:
    """Return bitsandbytes' functions; raises WeightsError where it is missing or cannot work here."""
    try:
        import bitsandbytes.functional as functional
    except (ImportError, OSError, RuntimeError) as error:
        raise WeightsError(
            f"The variant needs {LIBRARY}, which cannot be used here ({error}): pip install {LIBRARY}."
        ) from error
    return functional


@dataclass(frozen=True, eq=False)
class Int8Rows(Packed):
    """8 bits a number; a row shares its largest magnitude: codes int8 (out, in), largest float32 (out,)."""

    codes: Tensor
    largest: Tensor
    dtype: torch.dtype

    @classmethod
    def pack(cls, weight: Tensor) -> Int8Rows:
        """Return the weight (out, in) packed."""
        codes, largest, _ = _library().int8_vectorwise_quant(weight.to(torch.float16))
        return cls(codes, largest.to(torch.float32), weight.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], self.codes.shape[1]

    def dense(self) -> Tensor:
        return self.codes.to(self.dtype).mul_((self.largest / _MOST_INT8).to(self.dtype)[:, None])

    def product(self, x: Tensor) -> Tensor:
        """Return x (B, in) times the matrix, (B, out); on a CPU the rows meet the codes themselves, in bfloat16.

        So a quarter of what float32 takes is read, by a kernel that torch has for CPUs and for bfloat16 alone.
        """
        if x.device.type != "cpu" or x.shape[1] % _WHOLE_COLUMNS:
            return super().product(x)
        found: Tensor = torch._weight_int8pack_mm(x.to(torch.bfloat16), self.codes, self._scale)
        return found.to(x.dtype)

    @functools.cached_property
    def _scale(self) -> Tensor:
        """What a code stands for in each row, bfloat16 (out,): every step asks for it."""
        return (self.largest / _MOST_INT8).to(torch.bfloat16)

    def rows(self, first: int, last: int) -> Self:
        return type(self)(self.codes[first:last], self.largest[first:last], self.dtype)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        return cls(torch.cat([p.codes for p in parts]), torch.cat([p.largest for p in parts]), parts[0].dtype)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.largest.nbytes


@dataclass(frozen=True, eq=False)
class Nf4Blocks(Packed):
    """NF4: codes uint8 (out, in / 2); largest float32 (out, in / 64), the largest magnitude of each block of 64."""

    codes: Tensor
    largest: Tensor
    table: Tensor
    dtype: torch.dtype

    @classmethod
    def pack(cls, weight: Tensor) -> Nf4Blocks:
        """Return the weight (out, in) packed; raises WeightsError where a row is not whole blocks."""
        out, columns = weight.shape
        if columns % _BLOCK:
            raise WeightsError(f"A weight of {out} x {columns} cannot be packed as NF4, in blocks of {_BLOCK}.")
        codes, state = _library().quantize_4bit(weight.contiguous(), quant_type="nf4", blocksize=_BLOCK)
        return cls(codes.view(out, -1), state.absmax.view(out, -1), state.code, weight.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.codes.shape[0], 2 * self.codes.shape[1]

    def dense(self) -> Tensor:
        functional = _library()
        state = functional.QuantState(
            absmax=self.largest.reshape(-1),
            shape=torch.Size(self.shape),
            code=self.table,
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=self.dtype,
        )
        result: Tensor = functional.dequantize_4bit(self.codes.reshape(-1, 1), state)
        return result

    def rows(self, first: int, last: int) -> Self:
        return type(self)(self.codes[first:last], self.largest[first:last], self.table, self.dtype)

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        codes, largest = torch.cat([p.codes for p in parts]), torch.cat([p.largest for p in parts])
        return cls(codes, largest, parts[0].table, parts[0].dtype)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.largest.nbytes


PACKERS: dict[Kind, Callable[[Tensor], Packed]] = {"int8": Int8Rows.pack, "nf4": Nf4Blocks.pack}


def pack_projections(decoder: Decoder, kind: Kind, device: torch.device) -> None:
    """Replace the projections of all layers by packed ones on ``device``, one after another.

    Embeddings and norms stay where and what they are.
    """
    for layer in decoder.layers:
        if not isinstance(layer, DecoderLayer):
            continue
        for owner in (layer.self_attn, layer.mlp):
            for name, child in list(owner.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(owner, name, QuantisedLinear(PACKERS[kind](child.weight.detach().to(device))))
