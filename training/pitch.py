"""Train mini's pitch predictor, a part of HiFT: ``python -m training.pitch --work W``.

The product's own small network tells the pitch from the mel (Wang et al., NSF, arXiv 1904.12088), 0 where there is
none. The absolute error makes it decide: its best answer is the median, not a mean between voiced and unvoiced.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stepaudio.vocoder.config import HiftConfig
from stepaudio.vocoder.hift import F0Predictor
from stepaudio.vocoder.weights import HIFT_NAME, hift_names, read_state
from training.acoustic import SETS
from training.command import begin
from training.data import Example, read_examples
from training.sizes import hift_config
from training.texts import held_out
from training.trainer import Plan, best_weights, run

log = logging.getLogger(__name__)

CROP, BATCH, STEPS, LEARNING_RATE = 200, 32, 3000, 2e-3
SCALE = 100.0
"""Hz: what the last layer begins to answer, so that it need not grow to it."""

NOISE = 0.1
"""Added to the mel, whose predictions by the flow are never exact."""

SEED = 7


def new_predictor(config: HiftConfig) -> F0Predictor:
    """Return a predictor that begins with answers of some SCALE Hz."""
    model = F0Predictor(config.mel_channels, config.f0_channels)
    with torch.no_grad():
        model.classifier.weight.mul_(SCALE)
        model.classifier.bias.fill_(SCALE)
    return model


def clips(work: Path) -> list[Example]:
    """Return the clips that pitch is learned from: none of a held-out speaker."""
    found = [one for name in SETS if name != "heldout" for one in read_examples(work / name, work / "acoustic" / name)]
    return [one for one in found if len(one.bank) > CROP and one.record.speaker not in held_out().speakers]


def loss_of(model: nn.Module, batch: list[Example], generator: torch.Generator) -> torch.Tensor:
    """Return the mean error, in SCALE Hz, at random places of some clips."""
    rows = []
    for one in batch:
        start = int(torch.randint(len(one.bank) - CROP, (), generator=generator))
        rows.append(torch.from_numpy(np.asarray(one.bank[start : start + CROP], np.float32)))
    mel, pitch = torch.stack(rows)[..., :-1], torch.stack(rows)[..., -1]
    mel = mel + NOISE * torch.randn(mel.shape, generator=generator)
    return F.l1_loss(model(mel.transpose(1, 2)), pitch) / SCALE


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """Return the predictor's weights in the folder CosyVoice-300M-25Hz of an earlier training."""
    state = hift_names(read_state(folder / HIFT_NAME))
    prefix = "f0_predictor."
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _checkpoint(work: Path) -> Path:
    return work / "pitch" / "checkpoint.pt"


def has_pitch(work: Path) -> bool:
    """Return whether the predictor was trained."""
    return _checkpoint(work).is_file()


def load(work: Path) -> dict[str, torch.Tensor]:
    """Return the weights of the last checkpoint (their running average)."""
    return best_weights(_checkpoint(work))


def main() -> None:
    """Train until all steps are done, from the last checkpoint if there is one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--first", type=Path, help="a folder CosyVoice-300M-25Hz to begin with")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    begin(options.work, "pitch", options.threads)
    torch.manual_seed(SEED)
    model, found = new_predictor(hift_config()), clips(options.work)
    if options.first is not None:
        model.load_state_dict(exported(options.first))
    out = options.work / "pitch"
    out.mkdir(parents=True, exist_ok=True)
    plan = Plan(options.steps, BATCH, LEARNING_RATE, weight_decay=0.0, average=0.99, seed=SEED)
    run(model, found, [1] * len(found), lambda *batch: loss_of(model, *batch), out / "checkpoint.pt", plan)


if __name__ == "__main__":
    main()
