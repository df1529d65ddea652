from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stepaudio.errors import Cancelled
from stepaudio.tokens import rows
from stepaudio.vocoder.dit import Modulation
from stepaudio.vocoder.flow import schedule
from tests.token_kit import pad_to_groups_as_upstream
from tests.vocoder_recordings import MEL, STAGE, Recordings, assert_close, first_outputs


@pytest.fixture(scope="module")
def recorded(conformance: Path) -> Recordings:
    return Recordings(conformance)


def test_the_mel_of_ten_steps_agrees_with_the_recording(recorded: Recordings) -> None:
    mel = recorded.flow.decoder(recorded.noise(), recorded.conditions(), steps=10)
    assert_close(mel[:, 2 * recorded.prompt_rows :].transpose(1, 2), recorded["out.mel"], MEL)


def test_the_conditions_agree_with_the_recording(recorded: Recordings) -> None:
    flow = recorded.flow
    with first_outputs(
        token_embed=flow.input_embedding, spk=flow.spk_embed_affine_layer, mu=flow.encoder_proj
    ) as outputs:
        conditions = recorded.conditions()
    for name in ("token_embed", "spk", "mu"):
        assert_close(outputs[name], recorded[f"out.{name}"], STAGE)
    mu, speaker, prompt = conditions.split(80, dim=-1)
    assert torch.equal(mu, outputs["mu"])
    assert torch.equal(speaker, outputs["spk"][:, None].expand(-1, 132, -1))
    # 59 frames are shrunk to the 54 of the prompt's tokens by taking the nearest; nothing stands after them.
    nearest = [int(frame * 59 / 54) for frame in range(54)]
    assert torch.equal(prompt[:, :54], recorded["in.prompt_feat"][:, nearest])
    assert not prompt[:, 54:].any()


def test_the_recorded_rows_are_those_of_the_recorded_tokens(recorded: Recordings) -> None:
    prompt = rows(recorded["in.prompt_token"].numpy())
    tokens = rows(pad_to_groups_as_upstream(recorded["in.token"].numpy()))
    assert torch.equal(torch.from_numpy(prompt), recorded["out.prompt_token_reshaped"])
    assert torch.equal(torch.from_numpy(tokens), recorded["out.token_reshaped"])


def test_the_schedule_takes_short_steps_first() -> None:
    times, sizes = schedule(10)
    expected = [0, 0.0123, 0.0489, 0.1090, 0.1910, 0.2929, 0.4122, 0.5460, 0.6910, 0.8436]
    torch.testing.assert_close(times, torch.tensor(expected), atol=5e-5, rtol=0)
    assert list(sizes) == sorted(sizes)
    assert sum(sizes) == pytest.approx(1.0)


def test_progress_rises_to_one_step_by_step(recorded: Recordings) -> None:
    heard: list[float] = []
    recorded.flow.decoder(recorded.noise(), recorded.conditions(), steps=4, progress=heard.append)
    assert heard == [0.25, 0.5, 0.75, 1.0]


def test_a_stop_takes_effect_before_the_next_step(recorded: Recordings) -> None:
    heard: list[float] = []
    with pytest.raises(Cancelled):
        recorded.flow.decoder(
            recorded.noise(),
            recorded.conditions(),
            steps=10,
            progress=heard.append,
            should_stop=lambda: len(heard) == 3,
        )
    assert heard == [0.1, 0.2, 0.3]


def test_fewer_steps_still_give_a_mel_near_that_of_ten(recorded: Recordings) -> None:
    few = recorded.flow.decoder(recorded.noise(), recorded.conditions(), steps=6)
    ten = recorded.flow.decoder(recorded.noise(), recorded.conditions(), steps=10)
    assert torch.isfinite(few).all()
    assert 0 < (few - ten).abs().mean() < 0.25 * ten.abs().mean()


def test_without_guidance_nothing_is_computed_that_has_no_weight(
    recorded: Recordings, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = recorded.flow.decoder
    estimate, seen = decoder.estimator.forward, []

    def counted(
        x: torch.Tensor, projected: torch.Tensor, modulation: Modulation, step: int, present: torch.Tensor | None
    ) -> torch.Tensor:
        seen.append(len(projected))
        return estimate(x, projected, modulation, step, present)

    monkeypatch.setattr(decoder.estimator, "forward", counted)
    monkeypatch.setattr(decoder, "guidance", 1e-12)
    beside = decoder(recorded.noise(), recorded.conditions(), steps=3)
    monkeypatch.setattr(decoder, "guidance", 0.0)
    alone = decoder(recorded.noise(), recorded.conditions(), steps=3)
    assert seen == [2, 2, 2, 1, 1, 1]
    torch.testing.assert_close(alone, beside, atol=1e-4, rtol=1e-4)
