"""Weights in the layout of compressed-tensors ("pack-quantized", W4A16), as the official AWQ folder has them.

Of a layer ``X.weight`` (out, in) the files hold

    X.weight_packed      int32 (out, in / 8): eight numbers, the first one in the lowest four bits
    X.weight_scale       (out, in / group)
    X.weight_zero_point  int32 (out / 8, in / group): eight rows in one, the first one in the lowest four bits;
                         missing where the numbers are symmetric around 8
    X.weight_shape       int64 (2,): out, in
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepaudio.errors import WeightsError
from stepaudio.llm.quantised import Int4Groups

KEY = "quantization_config"
METHOD, FORMAT = "compressed-tensors", "pack-quantized"
PACKED, SCALE, ZERO, SHAPE = "weight_packed", "weight_scale", "weight_zero_point", "weight_shape"
BITS, IN_ONE = 4, 8
SYMMETRIC_ZERO = 8


@dataclass(frozen=True)
class Scheme:
    """How the projections of a folder are packed: ``group`` numbers share a scale; symmetric: and have no zero."""

    group: int
    symmetric: bool


def scheme_of(config: Mapping[str, Any], folder: Path) -> Scheme | None:
    """Return the scheme that a config.json asks for, None where its weights are plain.

    Raises WeightsError for any other way of packing weights: what we would read would not be what was meant.
    """
    found = config.get(KEY)
    if found is None:
        return None
    problem = f"The file config.json in {folder} asks for weights that are packed in a way that is not supported"
    if not isinstance(found, Mapping) or found.get("quant_method") != METHOD or found.get("format") != FORMAT:
        raise WeightsError(f"{problem}: only {METHOD} in the format {FORMAT} is.")
    groups = found.get("config_groups")
    schemes = list(groups.values()) if isinstance(groups, Mapping) else []
    weights = schemes[0].get("weights") if len(schemes) == 1 and isinstance(schemes[0], Mapping) else None
    if not isinstance(weights, Mapping) or schemes[0].get("input_activations") is not None:
        raise WeightsError(f"{problem}: exactly one group of weights and plain activations are expected.")
    size = weights.get("group_size")
    if weights.get("num_bits") != BITS or weights.get("type") != "int" or weights.get("strategy") != "group":
        raise WeightsError(f"{problem}: only integers of {BITS} bits in groups are.")
    if not isinstance(size, int) or size < 1 or weights.get("actorder") not in (None, False, "weight"):
        raise WeightsError(f"{problem}: a group size of {size!r} with the order {weights.get('actorder')!r}.")
    return Scheme(size, bool(weights.get("symmetric")))


def unpacked_names(name: str, scheme: Scheme) -> tuple[str, ...]:
    """Return the names of the tensors that stand for the weight ``name`` (which ends in .weight)."""
    parts = (PACKED, SCALE, SHAPE) if scheme.symmetric else (PACKED, SCALE, ZERO, SHAPE)
    return tuple(f"{name.removesuffix('weight')}{part}" for part in parts)


def read_weight(
    tensors: Mapping[str, Tensor], name: str, shape: tuple[int, int], scheme: Scheme, dtype: torch.dtype, folder: Path
) -> Int4Groups:
    """Return the weight ``name`` of this shape from its tensors; raises WeightsError for one that does not fit."""
    out, columns = shape
    stem = name.removesuffix("weight")
    if columns % scheme.group or columns % IN_ONE or (not scheme.symmetric and out % IN_ONE):
        raise WeightsError(f"The weight {name} in {folder}, {out} x {columns}, cannot be packed in the way it says.")
    expected = {
        PACKED: (torch.int32, (out, columns // IN_ONE)),
        SCALE: (None, (out, columns // scheme.group)),
        SHAPE: (torch.int64, (2,)),
        ZERO: (torch.int32, (out // IN_ONE, columns // scheme.group)),
    }
    for full in unpacked_names(name, scheme):
        kind, size = expected[full.removeprefix(stem)]
        tensor = tensors[full]
        fits = tensor.is_floating_point() if kind is None else tensor.dtype == kind
        if not fits or tuple(tensor.shape) != size:
            raise WeightsError(f"The tensor {full} in {folder} is {tensor.dtype} {tuple(tensor.shape)}, not {size}.")
    if tensors[f"{stem}{SHAPE}"].tolist() != [out, columns]:
        raise WeightsError(f"The tensor {stem}{SHAPE} in {folder} does not say {out} x {columns}.")
    scale = tensors[f"{stem}{SCALE}"].to(dtype)
    zero = torch.full_like(scale, SYMMETRIC_ZERO)
    if not scheme.symmetric:
        zero = _nibbles(tensors[f"{stem}{ZERO}"].t()).t().to(dtype).contiguous()
    codes = tensors[f"{stem}{PACKED}"].contiguous().view(torch.uint8)  # little-endian: low bits first
    return Int4Groups(codes.clone(), scale.contiguous(), zero)


def _nibbles(packed: Tensor) -> Tensor:
    """Return the numbers (n, 8 m) in int32 words (n, m), the lowest four bits first."""
    shifts = torch.arange(0, 4 * IN_ONE, BITS, device=packed.device)
    return ((packed[..., None] >> shifts) & 15).flatten(1)
