"""Sharpening: the flow learns from adversary and reader, the tokenizer and the reader's own lessons are left alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from stepaudio.vocoder.weights import FLOW_NAME, read_state
from stepaudio.weights import COSYVOICE, EDITX, TOKENIZER
from tests.test_training_joint import clip
from training import joint, sharpen
from training.adversary import Refined, apart, own_loss
from training.mel_adversary import MelAdversary, Reader

MINI = Path("models/mini")


@pytest.fixture
def model() -> Refined:
    torch.manual_seed(0)
    return Refined(sharpen.Sharpened(joint.begun(MINI)), MelAdversary(), sharpen.ADVERSARY_RATE)


@pytest.fixture
def lesson() -> joint.Lesson:
    return joint.prepared([clip(2.0, 1)], torch.Generator().manual_seed(1), rows=72)


def test_flow_reader_and_adversary_learn_and_the_tokenizer_does_not(model: Refined, lesson: joint.Lesson) -> None:
    model.train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    loss = sharpen.loss_of(model, lesson)
    model.zero_grad()  # as the trainer does after the loss, in which the adversary has learned
    loss.backward()
    taught = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}
    inner = {name.removeprefix("generator.") for name in taught}
    assert {"joint.of_steps.weight", "joint.trainee.flow.encoder_proj.weight", "ear.first.weight"} <= inner
    assert not any(name.startswith("joint.tokenizer.") for name in inner)
    assert not any(name.startswith("adversary.") for name in taught)
    changed = {name for name, one in model.state_dict().items() if not torch.equal(one, before[name])}
    assert changed
    assert all(name.startswith("adversary.") for name in changed)  # by its own optimizer


def test_what_is_made_learns_from_the_reader_but_not_the_reader_from_what_is_made(
    model: Refined, lesson: joint.Lesson, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_reader(shares: tuple[float, float]) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(sharpen, "READING_SHARE", shares[0])
        monkeypatch.setattr(sharpen, "SEEN_SHARE", shares[1])
        model.zero_grad()
        torch.manual_seed(1)
        sharpen.loss_of(model.eval(), lesson).backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    without, much = of_reader((0.0, 0.0)), of_reader((9.0, 9.0))
    ear = [name for name in much if ".ear." in name]
    assert ear
    for name in ear:
        torch.testing.assert_close(much[name], without[name])
    last = "generator.joint.trainee.flow.decoder.estimator.final_layer.linear.weight"
    assert float((much[last] - without[last]).norm()) > 0.1 * float(without[last].norm())


def test_the_adversary_tells_smooth_mels_from_true_ones() -> None:
    torch.manual_seed(0)
    true = -6 + 2.5 * torch.randn(2, 96, 80)
    made = torch.nn.functional.avg_pool1d(true, 5, stride=1, padding=2)
    adversary, beside = MelAdversary(), torch.zeros(2, 96, 80)
    own = torch.optim.AdamW(adversary.parameters(), 2e-3)
    losses = []
    for _ in range(15):
        own.zero_grad()
        loss = own_loss(adversary, made, true, beside)
        loss.backward()
        own.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_the_reader_sees_what_is_near_a_frame_alone() -> None:
    torch.manual_seed(0)
    ear, mel = Reader(), torch.randn(1, 60, 80)
    other = mel.clone()
    other[:, :10] += 5
    (first, seen), (second, also_seen) = ear(mel), ear(other)
    assert first.shape == (1, 60, sharpen.Reader().last.out_features)
    assert not torch.equal(first[:, 10], second[:, 10])
    torch.testing.assert_close(first[:, 30:], second[:, 30:])
    assert float(apart(seen, seen)) == 0.0
    assert float(apart(seen, also_seen)) > 0.0


def test_a_checkpoint_becomes_the_flow_of_a_weights_folder(model: Refined, tmp_path: Path) -> None:
    mini = tmp_path / "mini"
    shutil.copytree(MINI, mini)
    final = model.generator.joint.trainee.flow.decoder.estimator.final_layer.linear
    before = final.weight.detach().clone()
    final.weight.data += 0.25
    (tmp_path / "sharpen").mkdir()
    torch.save({"model": model.state_dict()}, tmp_path / "sharpen" / joint.CHECKPOINT)
    sharpen.write(tmp_path, mini, 0.5)
    written = read_state(mini / EDITX / COSYVOICE / FLOW_NAME)
    found = written["decoder.estimator.final_layer.linear.weight"]
    torch.testing.assert_close(found.float(), before + 0.125, atol=1e-3, rtol=1e-3)
    for path in (MINI / TOKENIZER).rglob("*.*"):
        if path.is_file():
            assert path.read_bytes() == (mini / path.relative_to(MINI)).read_bytes(), path
