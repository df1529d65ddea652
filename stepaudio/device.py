"""Device, precision, TF32 and threads: chosen once, with a reason that can be logged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from stepaudio.cores import core_count

DeviceChoice = Literal["auto", "cpu", "cuda"]
LEAST_DRIVER = 580
"""Of NVIDIA, for the CUDA 13 that the pinned torch is built for."""
DRIVER_VERSION = Path("/proc/driver/nvidia/version")

DtypeChoice = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Runtime:
    """Where and how the networks run. ``dtype`` is the language model's; the rest is float32."""

    device: torch.device
    dtype: torch.dtype
    tf32: bool
    threads: int
    reason: str

    def synchronize(self) -> None:
        """Wait until the device has finished, so that a clock read afterwards is honest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"


def choose(
    device: DeviceChoice = "auto", dtype: DtypeChoice = "auto", *, tf32: bool = True, threads: int | None = None
) -> Runtime:
    """Return the Runtime for the wishes given; an impossible wish falls back to the CPU with its reason."""
    usable = torch.cuda.is_available()
    if device == "cpu":
        place, reason = torch.device("cpu"), "CPU, as set"
    elif usable:
        place = torch.device("cuda", torch.cuda.current_device())
        major, minor = torch.cuda.get_device_capability(place)
        reason = f"{torch.cuda.get_device_name(place)} (compute capability {major}.{minor})"
    else:
        place = torch.device("cpu")
        if torch.version.cuda is None:
            reason = "CPU: this torch is a CPU build"
        else:
            reason = f"CPU: no usable GPU (torch is built for CUDA {torch.version.cuda}; {_driver_words()})"
    if dtype == "auto":
        bf16 = place.type == "cuda" and torch.cuda.is_bf16_supported()
        number = torch.bfloat16 if bf16 else torch.float32
    else:
        number = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    return Runtime(place, number, tf32 and place.type == "cuda", threads or core_count(), reason)


def _driver_words() -> str:
    """Return what is wrong with the GPU's driver, as far as Linux tells."""
    try:
        told = DRIVER_VERSION.read_text(encoding="utf-8")
    except OSError:
        return "the driver is missing or older than that needs"
    found = re.search(r"\b(\d{3,})\.\d+", told)
    if found and int(found[1]) < LEAST_DRIVER:
        return f"the driver is {found[0]}, and {LEAST_DRIVER} or newer is needed"
    return f"the driver is {found[0] if found else 'unknown'}, but no GPU can be used"


@contextmanager
def without_tf32(place: torch.device) -> Iterator[None]:
    """Run the body in full float32 on ``place``: where rounding would decide between two codes, TF32 may not."""
    if place.type != "cuda":
        yield
        return
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def apply(runtime: Runtime) -> None:
    """Set the process-wide switches of torch that the Runtime asks for; called once, at start."""
    torch.set_num_threads(runtime.threads)
    torch.backends.cuda.matmul.allow_tf32 = runtime.tf32
    torch.backends.cudnn.allow_tf32 = runtime.tf32
