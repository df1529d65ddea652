"""Tiny weights whose language model is packed in 4 bits, in the layout of the official AWQ folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stepaudio.llm.compressed import BITS, FORMAT, KEY, METHOD, PACKED, SCALE, SHAPE, ZERO
from stepaudio.llm.loading import CONFIG_FILE, INDEX_FILE

GROUP = 32
_MOST = 2**BITS - 1


def write_awq(source: Path, folder: Path, *, symmetric: bool = False) -> Path:
    """Write a copy of the folder ``source`` (one shard, plain weights) with packed projections; return ``folder``."""
    shutil.copytree(source, folder)
    (shard,) = folder.glob("*.safetensors")
    packed: dict[str, Tensor] = {}
    for name, tensor in load_file(shard).items():
        if name.endswith("_proj.weight"):
            packed |= _packed(name.removesuffix("weight"), tensor, symmetric)
        else:
            packed[name] = tensor
    save_file(packed, shard, metadata={"format": "pt"})
    _change(folder / INDEX_FILE, {"weight_map": dict.fromkeys(packed, shard.name)})
    weights = {"num_bits": BITS, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": symmetric}
    scheme = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    settings = {"quant_method": METHOD, "format": FORMAT, "config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    _change(folder / CONFIG_FILE, {KEY: settings})
    return folder


def _packed(stem: str, weight: Tensor, symmetric: bool) -> dict[str, Tensor]:
    """Return the tensors that stand for a weight (out, in)."""
    out, columns = weight.shape
    grouped = weight.view(out, -1, GROUP)
    if symmetric:
        scale = grouped.abs().amax(-1) / (_MOST // 2)
        zero = torch.full_like(scale, (_MOST + 1) // 2)
    else:
        low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
        scale = (high - low) / _MOST
        zero = (-low / scale).round()
    codes = (grouped / scale[..., None] + zero[..., None]).round().clamp(0, _MOST).view(out, columns)
    tensors = {
        stem + PACKED: _words(codes),
        stem + SCALE: scale,
        stem + SHAPE: torch.tensor([out, columns], dtype=torch.int64),
    }
    return tensors if symmetric else tensors | {stem + ZERO: _words(zero.t()).t().contiguous()}


def _words(codes: Tensor) -> Tensor:
    """Return numbers 0..15 (n, 8 m) as int32 (n, m), the first one in the lowest four bits."""
    pairs = codes.to(torch.uint8).reshape(len(codes), -1, 2)
    return (pairs[..., 0] | (pairs[..., 1] << BITS)).contiguous().view(torch.int32)


def _change(path: Path, fields: dict[str, object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
