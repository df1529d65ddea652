"""Train mini's flow: ``python -m training.flow {train,evaluate} --work W``.

Conditional flow matching (Lipman et al., arXiv 2210.02747) along straight paths from noise to mel, through the
product's own modules. A random beginning of every clip is its prompt. Two rounds: first only the step from time 0 to
time 1 is learned, which is the mel that is to be expected from codes and voice; then all times, towards a mel that
lies only a part of the way from the expected to the true one. A network as small as this tells the expected mel well
and what is left to chance badly: ten steps of it sound like noise where one is still understood.

Of the codes it reads the semantic ones alone. The linguistic encoder knows the voices of the training too well: what it
says of them can be relied on, and so was, but of other voices it says too much that is wrong.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stepaudio.tokens import PAD_LINGUISTIC, ROWS_PER_GROUP
from stepaudio.vocoder.config import FlowConfig
from stepaudio.vocoder.dit import BLOCK_ROWS, FINAL_ROWS, NORM_EPS, Block, DiT
from stepaudio.vocoder.flow import Flow
from stepaudio.vocoder.weights import FLOW_NAME, read_state
from training.acoustic import MEL_MEAN, MEL_SPREAD, MELS
from training.codes import ROW_FRAMES, Spoken, read_spoken
from training.command import DEVICES, begin
from training.ear import EAR_SHARE, Ear, Spelling, Words
from training.ear import load as load_ear
from training.sizes import flow_config
from training.stored import deaf
from training.texts import held_out
from training.trainer import Plan, best_weights, home, run, step_of
from training.whisper import tiny_en_tokenizer

log = logging.getLogger(__name__)

TIMES = {"recordings": 2, "kokoro": 2, "presets": 2, "hibari": 1}
"""How often a pass shows a clip."""

HIBARI_CLIPS = 1000
SHORTEST, LONGEST = 25, 425
"""Rows of what is trained on (1 to 17 s)."""

STEP_ROWS = 12
"""Lengths are multiples of this."""

MIXED = 0.01
"""By what share the lengths of a batch's clips differ: little is cut off, so that a clip still says its text."""

BATCH_ROWS, STEPS, LEARNING_RATE = 600, 10_000, 1e-3
TURNED = 2.0
"""Muon's learning rate over AdamW's."""

SHIFTED, SHIFT = 0.5, 25
"""How often, and by how many frames at most at each end, a prompt's mel holds silence that its codes do not: the
product trims what the codes are made of and not the mel, which is then squeezed to the codes' length."""

OTHER_VOICE = 0.5
"""How often the speaker vector is that of another clip of the voice."""

SPREAD = 0.3
"""How much of the way from the expected mel to the true one the second round goes."""

SEED = 5


class Trainee(nn.Module):
    """The flow, through whose estimator every clip of a batch may go at a time of its own."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.flow = Flow(config)
        self.velocity = velocity
        self._begin()

    def _begin(self) -> None:
        """Set what must begin small: the gates shut, the velocity its mean."""
        estimator = self.flow.decoder.estimator
        for part in (*estimator.blocks, estimator.final_layer):
            nn.init.zeros_(part.adaLN_modulation[1].weight)
            nn.init.zeros_(part.adaLN_modulation[1].bias)
        nn.init.constant_(estimator.final_layer.linear.bias, MEL_MEAN)
        nn.init.normal_(self.flow.input_embedding.embedding.weight, std=0.5)
        with torch.no_grad():
            estimator.in_proj.weight[:, :MELS] /= MEL_SPREAD
            estimator.in_proj.weight[:, 3 * MELS :] /= MEL_SPREAD

    def forward(self, mixed: torch.Tensor, conditions: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the velocity (B, T, M) of the noisy mel ``mixed`` (B, T, M) at ``times`` (B,)."""
        with torch.autocast(mixed.device.type, torch.bfloat16):
            return self.velocity(self.flow.decoder.estimator, mixed, conditions, times).float()


def velocity(estimator: DiT, mixed: torch.Tensor, conditions: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
    """Return what the product's estimator says, where every clip of the batch has a time of its own."""
    embedded = estimator.t_embedder(times)
    x = F.linear(mixed, estimator.in_proj.weight[:, :MELS]) + estimator.project(conditions)
    for block in estimator.blocks:
        assert isinstance(block, Block)
        x = _block(block, x, block.adaLN_modulation(embedded).unflatten(-1, (BLOCK_ROWS, 1, -1)))
    final = estimator.final_layer
    shift, scale = final.adaLN_modulation(embedded).unflatten(-1, (FINAL_ROWS, 1, -1)).unbind(1)
    out: torch.Tensor = final.linear(_norm(x, shift, scale))
    return out


def _block(block: Block, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    attention, mlp, convolution = rows.unflatten(1, (3, 3)).unbind(1)  # each: shift, scale, gate
    x = x + attention[:, 2] * block.attn(_norm(x, attention[:, 0], attention[:, 1]))
    first, norm, second = (block.conv.block[name] for name in ("1", "3", "6"))
    x = x + convolution[:, 2] * second(_mish(norm(first(_norm(x, convolution[:, 0], convolution[:, 1])))))
    return x + mlp[:, 2] * block.mlp(_norm(x, mlp[:, 0], mlp[:, 1]))


def _mish(x: torch.Tensor) -> torch.Tensor:
    """Return torch's mish by other words: the gradient of its own takes a tenth of a step on a CPU."""
    grown = x.float().clamp(max=20).exp()  # above 20 mish is x
    return (x.float() * (1 - 2 / ((grown + 1).square() + 1))).to(x.dtype)


def _norm(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (1 + scale) + shift


class Voices:
    """The speaker vectors of every voice, to give a clip that of another one."""

    def __init__(self, clips: list[Spoken]) -> None:
        self._of = defaultdict(list)
        for clip in clips:
            self._of[clip.record.speaker].append(clip.voice)

    def draw(self, clip: Spoken, generator: torch.Generator) -> np.ndarray:
        """Return the clip's own vector or, as often as OTHER_VOICE says, that of a clip of the same voice."""
        if float(torch.rand((), generator=generator)) >= OTHER_VOICE:
            return clip.voice
        others = self._of[clip.record.speaker]
        return others[int(torch.randint(len(others), (), generator=generator))]


def crops(batch: list[Spoken], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows int64 (B, L, 2) and mel (B, 2 L, M) at random places; L is what the shortest clip has, at most."""
    length = min(LONGEST, min(len(clip.rows) for clip in batch)) // STEP_ROWS * STEP_ROWS
    rows, mels = [], []
    for clip in batch:
        groups = (len(clip.rows) - length) // ROWS_PER_GROUP + 1
        start = ROWS_PER_GROUP * int(torch.randint(groups, (), generator=generator))
        rows.append(torch.from_numpy(clip.rows[start : start + length].astype(np.int64)))
        mel = clip.mel[ROW_FRAMES * start : ROW_FRAMES * (start + length), :MELS]
        mels.append(torch.from_numpy(np.asarray(mel, np.float32)))
    return torch.stack(rows), torch.stack(mels)


def prompt_of(mel: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return the prompt, (T, M): the first ``count`` frames of a mel (T, M), at times squeezed, and zeros after it."""
    kept = mel[:count]
    if count and float(torch.rand((), generator=generator)) < SHIFTED:
        before, after = torch.randint(SHIFT, (2,), generator=generator).tolist()
        quiet = mel[mel.mean(1).topk(min(5, len(mel)), largest=False).indices].mean(0)
        whole = torch.cat((quiet.expand(before, -1), kept, quiet.expand(after, -1)))
        kept = F.interpolate(whole.T[None], size=count)[0].T
    return F.pad(kept, (0, 0, 0, len(mel) - count))


class Hearing:
    """An ear that knows what is said, and expects no token that is in no text."""

    def __init__(self, ear: Ear, spelling: Spelling, clips: list[Spoken]) -> None:
        self._ear, self._spelling = ear, spelling
        ear.known = spelling.words(sorted({one.record.text for one in clips})).tokens.unique()

    def unlike(self, made: torch.Tensor, mel: torch.Tensor, batch: list[Spoken]) -> torch.Tensor:
        """Return how otherwise mels (B, T, M) of parts of a batch are heard and their words understood."""
        return self._ear.unlike(made, mel, self._words(batch, mel.shape[1] // ROW_FRAMES).to(mel.device))

    def _words(self, batch: list[Spoken], length: int) -> Words:
        """Return the texts of those clips that are English and whole in ``length`` rows."""
        whole = [one.record.lang == "en" and len(one.rows) - length <= STEP_ROWS for one in batch]
        return self._spelling.words([one.record.text if all_ else "" for one, all_ in zip(batch, whole, strict=True)])


def loss_of(
    model: Trainee,
    batch: list[Spoken],
    voices: Voices,
    generator: torch.Generator,
    *,
    expected_only: bool,
    hearing: Hearing | None = None,
) -> torch.Tensor:
    """Return how far the expected mel is off (mean absolute error) or, later, the velocity (mean squared error).

    With an ear it also counts how otherwise the expected mel is heard.
    """
    rows, mel = crops(batch, generator)
    rows[:, :, 0] = PAD_LINGUISTIC
    count, frames, _ = mel.shape

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    speaker = torch.from_numpy(np.stack([voices.draw(clip, generator) for clip in batch]))
    prompted = (draw(count, 1) * 0.7 * frames * (draw(count, 1) > 0.1)).long()
    prompt = torch.stack([prompt_of(one, int(count), generator) for one, count in zip(mel, prompted, strict=True)])
    noise, begin = torch.randn(mel.shape, generator=generator), torch.zeros(count)
    place = home(model)
    rows, mel, speaker, prompt, noise, begin = (
        one.to(place, non_blocking=True) for one in (rows, mel, speaker, prompt, noise, begin)
    )
    with torch.autocast(place.type, torch.bfloat16):
        conditions = model.flow.conditions(rows, prompt, speaker)
    if expected_only:
        made = noise + model(noise, conditions, begin)
        loss = F.l1_loss(made, mel)
        return loss if hearing is None else loss + EAR_SHARE * hearing.unlike(made, mel, batch)
    with torch.no_grad():
        expected = noise + model(noise, conditions, begin)
    goal = torch.lerp(expected, mel, SPREAD)
    times = (1 - torch.cos(0.5 * math.pi * draw(count))).to(place)
    told = model(torch.lerp(noise, goal, times[:, None, None]), conditions, times)
    return F.mse_loss(told, goal - noise)


def training_clips(work: Path) -> list[Spoken]:
    """Return the clips of every set, as often as a pass shows them; none of a held-out speaker."""
    found = []
    for name in TIMES:
        clips = [one for one in read_spoken(work, name) if len(one.rows) >= SHORTEST]
        if name == "hibari":
            clips = clips[:HIBARI_CLIPS]
        found += [one for one in clips if one.record.speaker not in held_out().speakers] * TIMES[name]
    return found


def train(
    work: Path,
    plan: Plan,
    expected_steps: int,
    first: Path | None,
    *,
    compiled: bool,
    heard: bool,
    device: str,
) -> None:
    """Train by a plan, from the last checkpoint if there is one.

    expected_steps: how many steps are the first round.   heard: whether the ear says how good the expected mel is.
    first: the folder CosyVoice-300M-25Hz of an earlier training, to begin with its weights where there is none.
    """
    clips = training_clips(work)
    log.info("%d clips, %.1f h", len(clips), sum(len(one.rows) for one in clips) / 90_000)
    out = work / "flow"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = Trainee(flow_config())
    log.info("%.2f M parameters", sum(one.numel() for one in model.flow.parameters()) / 1e6)
    if first is not None:
        model.flow.load_state_dict(read_state(first / FLOW_NAME))
    if compiled:
        model.velocity = torch.compile(velocity, dynamic=True)
    model.to(device)
    voices = Voices(clips)
    hearing = Hearing(load_ear(work).to(device), Spelling(tiny_en_tokenizer()), clips) if heard else None
    sizes = [min(LONGEST, len(one.rows)) for one in clips]

    def loss(batch: list[Spoken], generator: torch.Generator) -> torch.Tensor:
        expected_only = step_of(generator) < expected_steps
        return loss_of(model, batch, voices, generator, expected_only=expected_only, hearing=hearing)

    run(model, clips, sizes, loss, out / "checkpoint.pt", plan)


def load(out: Path) -> Flow:
    """Return the flow of the last checkpoint (its running average), to be used and not trained."""
    model = Trainee(flow_config())
    model.load_state_dict(best_weights(out / "checkpoint.pt"))
    model.flow.load_state_dict(deaf(model.flow.state_dict()))  # no training has told the rows of linguistic codes
    return model.flow.eval()


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("train",))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--expected-steps", type=int, default=STEPS // 2, help="steps of the first round")
    parser.add_argument("--rate", type=float, default=LEARNING_RATE, help="lower, where it begins with weights")
    parser.add_argument("--first", type=Path, help="a folder CosyVoice-300M-25Hz to begin with")
    parser.add_argument("--batch", type=int, default=BATCH_ROWS, help="rows of codes a step, 25 a second")
    parser.add_argument("--heard", action="store_true", help="let the ear judge the expected mel, too")
    parser.add_argument("--compiled", action="store_true", help="a fifth faster, after some minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    options = parser.parse_args()
    begin(options.work, f"flow-{options.part}", options.threads)
    plan = Plan(
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        turned=TURNED * options.rate,
        weight_decay=0.01,
        average=0.999,
        mixed=MIXED,
        seed=SEED,
    )
    train(
        options.work,
        plan,
        options.expected_steps,
        options.first,
        compiled=options.compiled,
        heard=options.heard,
        device=options.device,
    )


if __name__ == "__main__":
    main()
