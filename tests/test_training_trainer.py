"""The training loop: a run that was broken off goes on, and the schedule rises and falls."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from training.data import Example
from training.muon import Muon
from training.shards import ClipRecord
from training.trainer import (
    Plan,
    best_weights,
    generator_of,
    optimizers_of,
    run,
    schedule,
    share_gradients,
    step_of,
)


def examples() -> list[Example]:
    rng = np.random.default_rng(0)
    record = ClipRecord("n", "s", 0, 1, 16000, "en", "", "", ())
    return [Example(record, rng.standard_normal((4, 3)).astype(np.float16), 0) for _ in range(12)]


def train(
    checkpoint: Path,
    steps: int,
    stop_at: int | None = None,
    average: float = 0.0,
    turned: float = 0.0,
    workers: int | None = None,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    done = []

    def loss(batch: list[Example], generator: torch.Generator) -> torch.Tensor:
        return loss_of_rows(*rows_of(batch, generator))

    def rows_of(batch: list[Example], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(np.concatenate([one.bank for one in batch])).float()
        return rows, torch.randn(len(rows), 1, generator=generator)

    def loss_of_rows(rows: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        if stop_at is not None and len(done) == stop_at:
            raise KeyboardInterrupt
        done.append(1)
        return (model(rows) - wanted).square().mean()

    plan = Plan(steps=steps, batch=8, rate=1e-2, warm_up=4, save_every=1, average=average, turned=turned)
    if workers is not None:
        plan = replace(plan, workers=workers)
        run(model, examples(), [4] * 12, lambda rows, _: loss_of_rows(*rows), checkpoint, plan, rows_of)
        return dict(model.state_dict())
    try:
        run(model, examples(), [4] * 12, loss, checkpoint, plan)
    except KeyboardInterrupt:
        assert stop_at is not None
    return dict(model.state_dict())


def test_a_broken_run_goes_on_from_its_last_step_to_the_end(tmp_path: Path) -> None:
    train(tmp_path / "broken.pt", 12, stop_at=6)
    broken = torch.load(tmp_path / "broken.pt", weights_only=True)
    assert broken["step"] == 6
    train(tmp_path / "broken.pt", 12)
    assert torch.load(tmp_path / "broken.pt", weights_only=True)["step"] == 12


def test_broken_at_the_end_of_an_epoch_the_result_is_that_of_one_run(tmp_path: Path) -> None:
    train(tmp_path / "broken.pt", 12, stop_at=6)  # an epoch of 12 clips is 6 batches of 2
    resumed = train(tmp_path / "broken.pt", 12)
    whole = train(tmp_path / "whole.pt", 12)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)


def test_a_run_with_muon_goes_on_as_if_it_had_not_been_broken(tmp_path: Path) -> None:
    train(tmp_path / "broken.pt", 12, stop_at=6, turned=0.02)
    resumed = train(tmp_path / "broken.pt", 12, turned=0.02)
    whole = train(tmp_path / "whole.pt", 12, turned=0.02)
    plain = train(tmp_path / "plain.pt", 12)
    assert not torch.allclose(whole["weight"], plain["weight"], atol=1e-3)
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_prepared_ahead_teach_the_same(tmp_path: Path, workers: int) -> None:
    plain, ahead = train(tmp_path / "plain.pt", 12), train(tmp_path / "ahead.pt", 12, workers=workers)
    for name, value in plain.items():
        torch.testing.assert_close(ahead[name], value)
    checkpoints = [torch.load(tmp_path / name, weights_only=True) for name in ("plain.pt", "ahead.pt")]
    assert checkpoints[0]["epoch"] == checkpoints[1]["epoch"] == 2


def test_muon_trains_the_matrices_inside_and_no_tables() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "inner": nn.Linear(4, 4), "lm_head": nn.Linear(4, 5)})
    plan = Plan(steps=1, batch=1, rate=1e-3, turned=2e-3)
    adam, muon = optimizers_of(model, plan)
    assert [id(one) for one in muon.param_groups[0]["params"]] == [id(model["inner"].weight)]
    count = len(adam.param_groups[0]["params"]) + len(muon.param_groups[0]["params"])
    assert count == len(list(model.parameters()))


def test_matrices_turned_together_move_as_one_by_one() -> None:
    torch.manual_seed(0)
    shapes = [(12, 8), (8, 12), (12, 8), (6, 6)]
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    together = Muon(ours, 0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    apart = torch.optim.Muon(theirs, 0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        together.step()
        apart.step()
    for one, other in zip(ours, theirs, strict=True):
        assert not torch.allclose(one, torch.ones_like(one), atol=0.05)
        torch.testing.assert_close(one, other, atol=4e-3, rtol=0)  # bfloat16 inside
    assert together.state_dict()["state"].keys() == apart.state_dict()["state"].keys()


def test_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    first = train(tmp_path / "one.pt", 5)
    again = train(tmp_path / "one.pt", 5)
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_the_learning_rate_rises_then_falls() -> None:
    plan = Plan(steps=1000, batch=1, rate=1.0)
    rates = [schedule(step, plan) for step in (0, 100, 200, 600, 1000)]
    assert rates[0] < rates[1] < rates[2] > rates[3] > rates[4] > 0


def test_the_running_average_lags_behind_the_weights_and_survives_a_break(tmp_path: Path) -> None:
    train(tmp_path / "plain.pt", 12)
    whole = train(tmp_path / "whole.pt", 12, average=0.9)
    train(tmp_path / "broken.pt", 12, stop_at=6, average=0.9)
    train(tmp_path / "broken.pt", 12, average=0.9)
    average = best_weights(tmp_path / "whole.pt")
    for name, value in whole.items():
        torch.testing.assert_close(best_weights(tmp_path / "plain.pt")[name], value)
        torch.testing.assert_close(best_weights(tmp_path / "broken.pt")[name], average[name])
        assert not torch.equal(average[name], value)


def _together(rank: int, folder: Path) -> None:
    """What each of two processes does that train together."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.Linear(2, 2)
    model.weight.grad = torch.full((2, 2), float(rank))
    share_gradients(model)
    trained = train(folder / "checkpoint.pt", 5)
    seen = [int(one.initial_seed()) for one in (generator_of(3), generator_of(4))]
    steps = [step_of(generator_of(step)) for step in (3, 4)]
    torch.save({"mean": model.weight.grad, "seen": seen, "steps": steps, **trained}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_train_one_model_each_with_batches_of_its_own(tmp_path: Path) -> None:
    multiprocessing.start_processes(_together, (tmp_path,), 2, start_method="spawn")
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(one["mean"], torch.full((2, 2), 0.5))
    assert one["steps"] == other["steps"] == [3, 4]
    assert not set(one["seen"]) & set(other["seen"])
    alone = train(tmp_path / "alone.pt", 5)
    for name, value in alone.items():
        assert torch.equal(one[name], other[name]), name
        assert not torch.equal(one[name], value), name
    kept = best_weights(tmp_path / "checkpoint.pt")
    assert all(torch.equal(kept[name], one[name]) for name in alone)
