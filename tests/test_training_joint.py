"""Training of codes and flow together: it begins with what was exported, and what it has become is written."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.device import choose
from stepaudio.loading import load_encoder
from stepaudio.types import Waveform
from stepaudio.weights import WeightsFolder, read_card
from tests.test_training_ear import listener  # noqa: F401 - a fixture
from training import codes, data, ear, hearing, joint, semantic
from training.codes import Spoken
from training.phones import IGNORED
from training.shards import ClipRecord

MINI = Path("models/mini")


def clip(seconds: float, seed: int) -> joint.Whole:
    rng = np.random.default_rng(seed)
    t = np.arange(int(16000 * seconds)) / 16000
    hum = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20))
    sound = (0.1 * hum * (1 + np.sin(2 * np.pi * 3 * t)) + 0.02 * rng.standard_normal(len(t))).astype(np.float32)
    rows, voice, offset = codes.Encoders(MINI).encode(sound, 16000)
    whisper = data.mel_of(sound, 16000)[0]
    mel = rng.normal(-6, 2, (2 * len(rows), 81)).astype(np.float16)
    record = ClipRecord("n", "s", 0, len(t), 16000, "en", "ah", "ɑ", (0, len(t)))
    return joint.Whole(Spoken(record, rows, voice, offset, mel), whisper, record)


@pytest.fixture(scope="module")
def clips() -> list[joint.Whole]:
    return [clip(2.0, 1), clip(2.6, 2)]


@pytest.fixture(scope="module")
def model() -> joint.Joint:
    torch.manual_seed(0)
    return joint.begun(MINI)


def test_it_begins_with_the_codes_and_the_table_that_were_exported(
    model: joint.Joint, clips: list[joint.Whole]
) -> None:
    model.eval()
    table = model.trainee.flow.input_embedding.embedding.weight
    torch.testing.assert_close(model.table(), table, atol=1e-4, rtol=1e-4)
    one = clips[0]
    with torch.inference_mode():
        (rows,) = model.embedded(hearing.whole(one))
    expected = model.trainee.flow.input_embedding(torch.from_numpy(one.spoken.rows.astype(np.int64))[None])[0]
    same = ((rows - expected).abs().amax(1) < 1e-3).float().mean()
    assert rows.shape == expected.shape
    assert float(same) > 0.9  # bfloat16 and the features' half precision turn a few codes


def test_the_loss_reaches_the_tokenizer_and_the_flow(
    model: joint.Joint,
    clips: list[joint.Whole],
    listener: ear.Ear,  # noqa: F811
) -> None:
    model.train()
    lesson = joint.prepared(clips, torch.Generator().manual_seed(1), rows=90)
    assert len(lesson.mel) == 2
    loss = joint.loss_of(model, lesson, listener)
    loss.backward()
    learning = [(name, one.grad) for name, one in model.named_parameters() if one.requires_grad]
    untaught = {name for name, grad in learning if grad is None or not grad.any()}
    model.zero_grad()
    # The last one: mini's flow is stored without time (training.stored), so nothing leads to it any more.
    apart = {
        "tokenizer.bottleneck.outside",
        "trainee.flow.input_embedding",
        "trainee.flow.decoder.estimator.t_embedder",
    }
    assert {name for name in untaught if not any(name.startswith(one) for one in apart)} == set()
    assert hearing.labels_of(clips[0], 10, 5).tolist() != [IGNORED] * 5


def test_batches_of_one_length_have_one_shape_however_many_clips_came(clips: list[joint.Whole]) -> None:
    lessons = [joint.prepared(clips[:count], torch.Generator().manual_seed(count), rows=120) for count in (1, 2)]
    shapes = [[part.shape for part in lesson.tensors()] for lesson in lessons]
    assert shapes[0] == shapes[1]
    assert lessons[0].mel.shape == (3, 72, 80)


def test_what_it_has_become_is_written_and_the_product_hears_its_codes(
    model: joint.Joint, clips: list[joint.Whole], tmp_path: Path
) -> None:
    shutil.copytree(MINI, tmp_path / "mini")
    torch.manual_seed(1)
    for parameter in model.tokenizer.bottleneck.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    joint.write(model.eval(), tmp_path / "mini")
    again = joint.begun(tmp_path / "mini")
    torch.testing.assert_close(again.table(), model.table(), atol=2e-2, rtol=2e-2)
    weights = WeightsFolder(tmp_path / "mini", read_card(tmp_path / "mini"), "written")
    encoder = load_encoder(weights, choose("cpu"))
    sound = Waveform(np.sin(np.arange(32000) / 20).astype(np.float32) * 0.4, 16000)
    found = encoder.encode(sound).encoding
    encoder.close()
    mels = [torch.from_numpy(data.mel_of(sound.samples, 16000)[0].astype(np.float32))]
    padded, lengths = semantic.gathered(mels)
    with torch.inference_mode():
        expected = model.tokenizer(padded, lengths)[0]
    assert float((torch.from_numpy(found.semantic[:45]) == expected[:45]).float().mean()) > 0.8
