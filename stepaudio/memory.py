"""Memory: what the chosen weights need and what is there, told before they are loaded; and what to do when it ends."""

from __future__ import annotations

import gc
import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import torch

from stepaudio.cgroups import control_groups, read
from stepaudio.device import Runtime
from stepaudio.errors import WeightsError
from stepaudio.weights import WeightsFolder

WORKING_BYTES = 2**30
"""For everything but weights: Python and its libraries (about 600 MB on a CPU), and the numbers of one request."""
_WORDS = (
    *("out of memory", "not enough memory", "cannot allocate memory", "can't allocate memory"),
    *("failed to allocate memory", "bad allocation", "alloc_failed"),
)
"""How torch, CUDA's libraries and ONNX Runtime tell it in errors that have no type of their own."""


def needed(weights: WeightsFolder, dtype: torch.dtype) -> int:
    """Return about how many bytes the weights take once loaded, and one request beside them.

    The language model counts in ``dtype``; every other file by its size, as those are loaded in the precision in
    which they are stored. What bitsandbytes packs while it is loaded counts as if it were not packed.
    """
    model = sum(loaded_bytes(path, dtype) for path in weights.editx.glob("*.safetensors"))
    folders = (weights.cosyvoice, weights.tokenizer)
    files = {path for folder in folders for path in folder.rglob("*") if path.suffix in (".pt", ".onnx", ".npy")}
    return model + sum(path.stat().st_size for path in files) + WORKING_BYTES


def loaded_bytes(path: Path, dtype: torch.dtype) -> int:
    """Return what the tensors of a safetensors file take in ``dtype``, integers (packed weights) as they are.

    Only the header is read. Raises WeightsError naming the file.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(file.read(length))
        return sum(_size(entry, dtype) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise WeightsError(f"The file {path.name} in {path.parent} cannot be read: {error}.") from error


def _size(entry: dict[str, Any], dtype: torch.dtype) -> int:
    if "F" in str(entry["dtype"]):  # F32, F16, BF16, ...
        return int(prod(entry["shape"])) * dtype.itemsize
    begin, end = entry["data_offsets"]
    return int(end) - int(begin)


def available(runtime: Runtime, root: Path = Path("/")) -> int | None:
    """Return how many bytes are free where the networks will run; None where that cannot be known.

    root: the folder in which proc and sys lie.
    """
    if runtime.on_gpu:
        return int(torch.cuda.mem_get_info(runtime.device)[0])
    known = (_free_of_machine(root), *map(_free_of_group, control_groups("memory", root)))
    return min((free for free in known if free is not None), default=None)


def advice(weights: WeightsFolder, runtime: Runtime) -> Iterator[str]:
    """Return one sentence where the weights will probably not fit, with what to do about it; else nothing.

    Nothing of damaged weights either: loading them says what is wrong.
    """
    try:
        free, wanted = available(runtime), needed(weights, runtime.dtype)
    except (WeightsError, OSError):
        return
    if free is None or free >= wanted:
        return
    where = "on the GPU" if runtime.on_gpu else "here"
    sentence = f"These weights take about {_gb(wanted)} of memory, and {_gb(free)} are free {where}."
    smaller = needed(weights, torch.bfloat16)
    if runtime.dtype == torch.float32 and smaller < wanted:
        fits = "which would fit" if smaller <= free else "still too much, but less"
        yield f"{sentence} With STEPAUDIO_DTYPE=bfloat16 they take {_gb(smaller)}, {fits}."
    elif runtime.on_gpu:
        yield f"{sentence} End other programs on it, or run on the CPU with STEPAUDIO_DEVICE=cpu."
    else:
        yield f"{sentence} End other programs, give the container more, or choose smaller weights."


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what it was raised from, says that there was no memory left."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, MemoryError | torch.OutOfMemoryError):
            return True
        of_library = isinstance(seen, RuntimeError) or type(seen).__module__.startswith("onnxruntime")
        if of_library and any(words in str(seen).lower() for words in _WORDS):
            return True
        seen = seen.__cause__
    return False


def release(runtime: Runtime) -> None:
    """Give back what nothing refers to any more, to the machine or to other programs on the GPU."""
    gc.collect()
    if runtime.on_gpu:
        torch.cuda.empty_cache()


def _free_of_machine(root: Path) -> int | None:
    for line in read(root / "proc/meminfo").splitlines():
        name, _, told = line.partition(":")
        if name == "MemAvailable" and told.removesuffix("kB").strip().isdecimal():
            return int(told.removesuffix("kB")) * 1024
    return None  # not Linux


def _free_of_group(group: Path) -> int | None:
    """Return what the limit of a control group leaves, None where it has none."""
    most = read(group / "memory.max") or read(group / "memory.limit_in_bytes")
    taken = read(group / "memory.current") or read(group / "memory.usage_in_bytes")
    if not (most.isdecimal() and taken.isdecimal()):  # the word "max", or no such group
        return None
    # What was read from files counts as used, but gives way. In the first version of control groups a group's own
    # number leaves out the groups within it.
    told = dict(line.partition(" ")[::2] for line in read(group / "memory.stat").splitlines())
    cached = told.get("total_inactive_file") or told.get("inactive_file", "")
    return max(int(most) - int(taken) + (int(cached) if cached.isdecimal() else 0), 0)


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
