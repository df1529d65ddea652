"""What every command of the training does first."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

DEVICES = ("cpu", "cuda")


def begin(work: Path, name: str, threads: int) -> None:
    """Set torch's threads, and send the log to ``logs/NAME.log`` in the work folder."""
    torch.set_num_threads(threads)
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=logs / f"{name}.log", level=logging.INFO, format="%(asctime)s %(message)s")
