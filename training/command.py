"""What every command of the training does first."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from training.trainer import Plan, rank

DEVICES = ("cpu", "cuda")


def begin(work: Path, name: str, threads: int) -> None:
    """Set torch's threads, and send the log to ``logs/NAME.log`` in the work folder.

    Processes that torch.distributed.run started train together (trainer.run); each has a log of its own.
    """
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
        name += f"-{rank()}" if rank() else ""
    torch.set_num_threads(threads)
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(filename=logs / f"{name}.log", level=logging.INFO, format="%(asctime)s %(message)s")


def learner(description: str | None, steps: int) -> argparse.ArgumentParser:
    """Return a parser of what all trainers take that begin with a weights folder and write to it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("part", choices=("train", "export"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="the weights folder to begin with, and to write to")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--captured", action="store_true", help="record every shape's step as a CUDA graph")
    return parser


def planned(options: argparse.Namespace, plan: Plan) -> Plan:
    """Return a plan with what such a parser was told of it."""
    return replace(plan, steps=options.steps, workers=options.workers, captured=options.captured)
