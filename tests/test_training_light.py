"""Training behind the light decoder: tokenizer, table and decoder learn, the flow waits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.test_training_ear import listener  # noqa: F401 - a fixture
from tests.test_training_joint import clip
from training import ear, joint, light
from training.command import learner, planned

MINI = Path("models/mini")


@pytest.fixture(scope="module")
def lesson() -> joint.Lesson:
    return joint.prepared([clip(2.0, 1), clip(2.6, 2)], torch.Generator().manual_seed(1), rows=90)


@pytest.fixture(scope="module")
def model() -> light.Light:
    torch.manual_seed(0)
    return light.Light(joint.begun(MINI))


def test_tokenizer_table_and_decoder_learn_and_the_flow_waits(
    model: light.Light,
    lesson: joint.Lesson,
    listener: ear.Ear,  # noqa: F811
) -> None:
    light.loss_of(model.train(), lesson, listener).backward()
    taught = {name for name, one in model.named_parameters() if one.grad is not None and one.grad.any()}
    model.zero_grad()
    wanted = {name for name, _ in model.named_parameters() if name.startswith("decoder.")}
    wanted |= {f"joint.{name}" for name in ("of_steps_table", "unsaid", "tokenizer.pair.weight")}
    assert wanted <= taught
    assert not any(name.startswith(("joint.trainee", "joint.reader")) for name in taught)


def test_the_ear_hears_some_clips_and_has_its_share_in_the_loss(
    model: light.Light,
    lesson: joint.Lesson,
    listener: ear.Ear,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model.eval()
    with torch.inference_mode():
        made, phones = model.decoder(model.joint.embedded(lesson.heard), lesson.voices)
        unlike = float(listener.unlike(made[:1], lesson.mel[:1]))
        losses = []
        for share in (0.0, 2.0):
            monkeypatch.setattr(light, "EAR_SHARE", share)
            losses.append(float(light.loss_of(model, lesson, listener)))
    assert made.shape == lesson.mel.shape
    assert len(made) == 2  # of which it hears the first one
    assert phones.shape[:2] == lesson.labels.shape
    assert losses[1] - losses[0] == pytest.approx(2 * unlike, rel=1e-3)


def test_a_few_steps_bring_the_mel_nearer(lesson: joint.Lesson, listener: ear.Ear) -> None:  # noqa: F811
    torch.manual_seed(2)
    model = light.Light(joint.begun(MINI)).train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        loss = light.loss_of(model, lesson, listener)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]


def test_a_trainers_options_make_its_plan() -> None:
    line = "train --work W --weights M --device cuda --workers 3 --captured --steps 7"
    plan = planned(learner("what it does", 100).parse_args(line.split()), joint.PLAN)
    assert (plan.steps, plan.workers, plan.captured) == (7, 3, True)
    assert (plan.batch, plan.rate) == (joint.PLAN.batch, joint.PLAN.rate)
    assert learner(None, 100).parse_args(["export", "--work", "W", "--weights", "M"]).steps == 100
