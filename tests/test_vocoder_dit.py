from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stepaudio.vocoder.flow import schedule
from tests.vocoder_recordings import STAGE, Recordings, assert_close, first_outputs


@pytest.fixture(scope="module")
def recorded(conformance: Path) -> Recordings:
    return Recordings(conformance)


def test_the_first_step_agrees_with_the_recording(recorded: Recordings) -> None:
    estimator = recorded.flow.decoder.estimator
    conditions = recorded.conditions()
    with first_outputs(t_emb=estimator.t_embedder, block=estimator.blocks[0]) as outputs:
        modulation = estimator.modulation(schedule(10)[0])
        projected = estimator.project(torch.cat((conditions, torch.zeros_like(conditions))))
        velocity = estimator(recorded.noise(), projected, modulation, 0)
    assert_close(outputs["t_emb"][:1].expand(2, -1), recorded["out.t_emb_step1"], STAGE)
    assert_close(outputs["block"], recorded["out.dit_block0_step1"], STAGE)
    assert_close(velocity, recorded["out.dit_out_step1_btc"], STAGE)


def test_times_embed_as_sinusoids_of_a_thousandfold(recorded: Recordings) -> None:
    embedder = recorded.flow.decoder.estimator.t_embedder
    time = torch.tensor([0.3], dtype=torch.float64)
    angle = 300.0 * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    expected = embedder.mlp(torch.cat((angle.cos(), angle.sin())).float()[None])
    assert_close(embedder(time.float()), expected, STAGE)


def test_all_times_at_once_are_as_one_after_the_other(recorded: Recordings) -> None:
    estimator = recorded.flow.decoder.estimator
    x, projected = recorded.noise(), estimator.project(recorded.conditions())
    times, _ = schedule(10)
    together = estimator.modulation(times)
    for step, time in enumerate(times):
        alone = estimator.modulation(time[None])
        assert_close(estimator(x, projected, together, step), estimator(x, projected, alone, 0), 1e-5)
    assert not torch.allclose(estimator(x, projected, together, 1), estimator(x, projected, together, 9), atol=0.1)


def test_the_projection_taken_apart_is_the_projection(recorded: Recordings) -> None:
    estimator = recorded.flow.decoder.estimator
    x, conditions = recorded.noise(), recorded.conditions()
    whole = estimator.in_proj(torch.cat((x, conditions), dim=-1))
    apart = F.linear(x, estimator.in_proj.weight[:, :80]) + estimator.project(conditions)
    assert_close(apart, whole, 1e-5)


def test_both_guidance_rows_see_the_same_mel(recorded: Recordings) -> None:
    estimator = recorded.flow.decoder.estimator
    conditions = recorded.conditions()
    modulation = estimator.modulation(torch.tensor([0.5]))
    projected = estimator.project(torch.cat((conditions, torch.zeros_like(conditions))))
    both = estimator(recorded.noise(), projected, modulation, 0)
    assert_close(both[:1], estimator(recorded.noise(), projected[:1], modulation, 0), 1e-5)
    assert_close(both[1:], estimator(recorded.noise(), projected[1:], modulation, 0), 1e-5)


def test_convolutions_see_no_later_frame(recorded: Recordings) -> None:
    conv = recorded.flow.decoder.estimator.blocks[0].conv
    x = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 10:] += 1
    before, after = conv(x), conv(changed)
    assert torch.equal(before[:, :10], after[:, :10])
    assert not torch.allclose(before[:, 10:], after[:, 10:])
