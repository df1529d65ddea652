"""The loop that every trainer shares: batches in a fixed order, a schedule, checkpoints that survive a kill."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from training.captured import Captured
from training.data import batches
from training.muon import Muon

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Prepare = Callable[[list[Item], torch.Generator], Any]

RANK_SEEDS = 1 << 32
"""So many seeds apart are those of two processes that train together: more than a training has steps."""

UNTURNED = ("embed", "adaLN", "lm_head")
"""Parts of the names of matrices that Muon does not train."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast. ``batch``: the sum of ``sizes`` in one step.   rate: AdamW's greatest learning rate."""

    steps: int
    batch: int
    rate: float
    mixed: float = 0.1
    """By what share the sizes of a batch's clips may differ (see data.batches)."""

    warm_up: int = 200
    weight_decay: float = 0.02
    clip: float = 2.0
    seed: int = 1
    turned: float = 0.0
    """Above 0: Muon's greatest learning rate, by which the matrices inside the network are trained in AdamW's place."""

    average: float = 0.0
    """Above 0: a running average of the weights is kept, this share of the old one at each step."""

    save_every: int = 200
    say_every: int = 50
    workers: int = 0
    """Processes that prepare batches ahead, where the device is faster than one core is at that."""

    captured: bool = False
    """Whether forward and backward pass are recorded once for every shape of a batch (training.captured)."""


def schedule(step: int, plan: Plan) -> float:
    """Return the share of the learning rate: up in ``warm_up`` steps, then a cosine down to 2 %."""
    if step < plan.warm_up:
        return (step + 1) / plan.warm_up
    share = min(1.0, (step - plan.warm_up) / max(1, plan.steps - plan.warm_up))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


@torch.no_grad()
def follow(average: dict[str, torch.Tensor], model: nn.Module, share: float) -> None:
    """Bring the running average of the weights, if one is kept, a step nearer to the model's."""
    values = model.state_dict()
    moving = [name for name, kept in average.items() if kept.is_floating_point()]
    if moving:
        torch._foreach_lerp_([average[name] for name in moving], [values[name] for name in moving], 1 - share)
    for name in average.keys() - set(moving):
        average[name].copy_(values[name])


def best_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a checkpoint: their running average where one was kept."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    found: dict[str, torch.Tensor] = state.get("average") or state["model"]
    return found


def optimizers_of(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    """Return AdamW for all weights, or Muon (Jordan et al., 2024) for matrices and AdamW for what is left.

    Muon is not for tables of codes, nor for what tells the time to every layer.
    """
    named = list(model.named_parameters()) if plan.turned else []
    inner = [one for name, one in named if one.ndim == 2 and not any(part in name for part in UNTURNED)]
    chosen = {id(one) for one in inner}
    others = [one for one in model.parameters() if id(one) not in chosen]
    fused = home(model).type == "cuda"
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, plan.rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay, fused=fused)
    ]
    if inner:
        found.append(Muon(inner, plan.turned, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"))
    return found


def rank() -> int:
    """Return the number of this process among those that train together; 0 where it is alone."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def generator_of(step: int) -> torch.Generator:
    """Return what is drawn from in a step."""
    return torch.Generator().manual_seed(step + RANK_SEEDS * rank())


def step_of(generator: torch.Generator) -> int:
    """Return the step that such a generator is of."""
    return generator.initial_seed() % RANK_SEEDS


def share_gradients(model: nn.Module) -> None:
    """Make every gradient the mean of those of all processes that train together, if there are several."""
    if not distributed.is_initialized():
        return
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    flat = torch.cat([one.flatten() for one in gradients]) / distributed.get_world_size()
    distributed.all_reduce(flat)
    for gradient, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def home(model: nn.Module) -> torch.device:
    """Return where a model's weights are."""
    return next(model.parameters()).device


class _Order(Sampler[tuple[int, int, list[int]]]):
    """Step, epoch and clips of every batch from a step on, in an order that depends on seed, rank and epoch alone."""

    def __init__(self, sizes: list[int], plan: Plan, step: int, epoch: int) -> None:
        self._sizes, self._plan, self._step, self._epoch = sizes, plan, step, epoch

    def __iter__(self) -> Iterator[tuple[int, int, list[int]]]:
        epoch, order = self._epoch, list[list[int]]()
        for step in range(self._step, self._plan.steps):
            if not order:
                seed = self._plan.seed + RANK_SEEDS * rank()
                order = batches(self._sizes, self._plan.batch, seed, epoch, self._plan.mixed)
                epoch += 1
            yield step, epoch, order.pop()


class _Batches(Dataset[tuple[int, Any]]):
    """Epoch and batch of every entry of an _Order, prepared if there is something to prepare."""

    def __init__(self, examples: list[Any], prepare: Prepare[Any] | None) -> None:
        self._examples, self._prepare = examples, prepare

    def __getitem__(self, entry: tuple[int, int, list[int]]) -> tuple[int, Any]:
        step, epoch, places = entry
        batch = [self._examples[place] for place in places]
        return epoch, batch if self._prepare is None else self._prepare(batch, generator_of(step))


def run(
    model: nn.Module,
    examples: list[Item],
    sizes: list[int],
    loss_of: Callable[[Any, torch.Generator], torch.Tensor],
    checkpoint: Path,
    plan: Plan,
    prepare: Prepare[Item] | None = None,
) -> None:
    """Train ``model`` until ``plan.steps`` steps are done, from ``checkpoint`` if it exists.

    loss_of: the loss of a batch; its randomness comes from the generator, which is seeded by the step and on the CPU,
    so that every device sees the same. The model trains where its weights are. Processes that train together
    (command.begin) each see a batch of their own; the first one keeps the checkpoint.
    prepare: makes of a batch what ``loss_of`` gets in its place, with another generator of the same seed; it may run in
    other processes (Plan.workers). Where steps are recorded (Plan.captured) it is needed and makes captured.Batches,
    and ``loss_of`` draws on the device: its generator is no step's.
    """
    optimizers = optimizers_of(model, plan)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    step = epoch = 0
    average: dict[str, torch.Tensor] = {}
    if checkpoint.is_file():
        state = torch.load(checkpoint, weights_only=True, map_location=home(model))
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        step, epoch = int(state["step"]), int(state["epoch"])
        average = state.get("average", {})
    if plan.average and not average:
        average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    log.info("%d clips, from step %d of %d", len(examples), step, plan.steps)
    recent, begun = [], time.perf_counter()
    ready = DataLoader(
        _Batches(examples, prepare),
        batch_size=None,
        sampler=_Order(sizes, plan, step, epoch),
        num_workers=plan.workers,
        pin_memory=plan.captured,
    )
    model.train()

    def learned(batch: Any) -> torch.Tensor:
        """Leave the gradients of a batch at the weights and return its loss."""
        loss = loss_of(batch, generator_of(step))
        model.zero_grad(set_to_none=True)  # after the loss, in which an adversary may have learned
        loss.backward()
        return loss.detach()

    if plan.captured:
        learned = Captured(model, lambda batch: loss_of(batch, torch.Generator()))
    for epoch, batch in ready:
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * schedule(step, plan)
        loss = learned(batch)
        share_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
        for optimizer in optimizers:
            optimizer.step()
        follow(average, model, min(plan.average, (step + 1) / (step + 10)))
        recent.append(loss)
        step += 1
        if step % plan.say_every == 0:
            said = float(torch.stack(recent).mean())  # the first thing that waits for the device
            pace = (time.perf_counter() - begun) / len(recent)
            log.info("step %d epoch %d loss %.3f %.3f s/step", step, epoch, said, pace)
            recent, begun = [], time.perf_counter()
        if rank() == 0 and (step % plan.save_every == 0 or step == plan.steps):
            content = {"model": model.state_dict(), "step": step, "epoch": epoch}
            content |= {"optimizers": [optimizer.state_dict() for optimizer in optimizers]}
            content |= {"average": average} if average else {}
            partial = checkpoint.with_suffix(".part")
            torch.save(content, partial)
            partial.replace(checkpoint)
