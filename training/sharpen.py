"""Sharpen what the flow expects: ``python -m training.sharpen {train,export} --work W --weights models/mini``.

After training.joint the flow tells the mel that is to be expected, which is the mean of all that the codes leave open:
smooth where speech is not. Here an adversary and a reader of phonemes teach it to decide (training.mel_adversary). The
encoders stay as they are, so all codes keep their meaning and the language model need not learn anew; but they hear
the clips disturbed as joint training does, so the flow learns what codes it may be given for a sound.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from stepaudio.vocoder.weights import FLOW_NAME, read_state
from stepaudio.weights import COSYVOICE, EDITX
from training.adversary import Refined, apart
from training.command import begin, learner, planned
from training.joint import (
    CHECKPOINT,
    PLAN,
    SEED,
    Joint,
    Lesson,
    begun,
    flow_of,
    given_back,
    prepared,
    training_clips,
)
from training.mel_adversary import MelAdversary, Reader
from training.phones import misread
from training.stored import flow_file
from training.trainer import Plan, best_weights, home, run

BATCH_ROWS, STEPS, LEARNING_RATE, TURNED = 600, 6000, 2e-4, 4e-4
ADVERSARY_RATE = 4e-4
ADVERSARY_SHARE, READING_SHARE, SEEN_SHARE = 0.3, 0.3, 0.5
"""Weights of the adversary's marks, of phonemes read wrongly, and of what the reader saw, beside the distance."""

SHARE = 0.6
"""How far the exported flow goes from the one before to the trained one."""


class Sharpened(nn.Module):
    """The joint model, of which the flow alone learns, with a reader of phonemes that learns from true mels."""

    def __init__(self, joint: Joint) -> None:
        super().__init__()
        self.joint, self.ear = joint, Reader()
        joint.tokenizer.requires_grad_(False)


def loss_of(model: Refined, lesson: Lesson) -> torch.Tensor:
    """Return how far the mel is off, how far from being taken for a true one, and how badly its phonemes are read."""
    sharpened: Sharpened = model.generator
    ear, lesson = sharpened.ear, lesson.to(home(model))
    made, _, conditions = given_back(sharpened.joint, lesson)
    beside = conditions[..., : made.shape[2]].detach().float()
    loss = F.l1_loss(made, lesson.mel) + ADVERSARY_SHARE * model.against(made, lesson.mel, beside)
    logits, theirs = ear(lesson.mel)
    loss = loss + misread(logits, lesson.labels)
    # What is made learns from the reader, but not the reader from what is made.
    fixed = {name: value.detach() for name, value in ear.named_parameters()}
    logits, ours = torch.func.functional_call(ear, fixed, (made,))
    seen = SEEN_SHARE * apart(ours, [one.detach() for one in theirs])
    return loss + READING_SHARE * misread(logits, lesson.labels) + seen


def train(work: Path, weights: Path, device: str, plan: Plan) -> None:
    """Train by a plan, from the last checkpoint if there is one, else from joint training's."""
    clips = training_clips(work)
    out = work / "sharpen"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    joint = begun(weights)
    joint.load_state_dict(best_weights(work / "joint" / CHECKPOINT))
    model = Refined(Sharpened(joint).to(device), MelAdversary(), ADVERSARY_RATE)
    sizes = [len(clip.spoken.rows) for clip in clips]
    prepare = functools.partial(prepared, rows=plan.batch)
    run(model, clips, sizes, lambda lesson, _: loss_of(model, lesson), out / CHECKPOINT, plan, prepare)


def write(work: Path, weights: Path, share: float) -> None:
    """Write the flow into a weights folder: what lies ``share`` of the way from that folder's to the trained one.

    Between the two lies what keeps the words of the one and has the sound of the other (Wortsman et al., Robust
    fine-tuning of zero-shot models, arXiv 2109.01903).
    """
    joint, path = begun(weights), weights / EDITX / COSYVOICE / FLOW_NAME
    prefix = "generator.joint."
    state = best_weights(work / "sharpen" / CHECKPOINT)
    joint.load_state_dict({key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})
    after = flow_of(joint)
    mixed = {name: torch.lerp(one.float(), after[name].float(), share) for name, one in read_state(path).items()}
    torch.save(flow_file(mixed), path)


def main() -> None:
    """Run one part."""
    parser = learner(__doc__, STEPS)
    parser.add_argument("--rows", type=int, default=BATCH_ROWS, help="rows of codes a step, 25 a second")
    parser.add_argument("--share", type=float, default=SHARE, help="of the way from the folder's flow, export")
    options = parser.parse_args()
    begin(options.work, f"sharpen-{options.part}", options.threads)
    if options.part == "train":
        plan = replace(planned(options, PLAN), batch=options.rows, rate=LEARNING_RATE, turned=TURNED)
        train(options.work, options.weights, options.device, plan)
    else:
        write(options.work, options.weights, options.share)


if __name__ == "__main__":
    main()
