"""Training of the speaker encoder: its loss, its figures, and an export that the product loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.encoder.speaker import SPEAKER_SIZE, SpeakerEncoder
from stepaudio.features import speaker_fbank
from training.data import Example
from training.shards import ClipRecord
from training.speaker import CROP, MOST_CLIPS, Classifier, cropped, export, margin_loss, nearest_rate, training_clips

from .conftest import voice


def example(frames: int, speaker: str) -> Example:
    bank = np.random.default_rng(frames).standard_normal((frames, 80)).astype(np.float16)
    return Example(ClipRecord("n", speaker, 0, 16000, 16000, "en", "", "", ()), bank, 0)


def test_the_export_gives_the_product_the_vectors_of_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Classifier(5).eval()
    with pytest.warns(DeprecationWarning, match="legacy"):
        export(model.voices, tmp_path / "campplus.onnx")
    encoder = SpeakerEncoder(tmp_path / "campplus.onnx", device=torch.device("cpu"), threads=1)
    for seconds in (0.4, 2.0):
        samples = voice(seconds, sample_rate=16000).samples
        with torch.no_grad():
            expected = model.voices(torch.from_numpy(speaker_fbank(samples))[None])[0]
        assert expected.shape == (SPEAKER_SIZE,)
        np.testing.assert_allclose(encoder.encode(samples), expected, rtol=1e-3, atol=1e-4)


def test_the_margin_makes_the_true_voice_harder_and_leaves_the_others() -> None:
    cosines = torch.tensor([[0.7, 0.1], [0.1, 0.7]])
    plain = torch.nn.functional.cross_entropy(cosines * 30, torch.tensor([0, 1]))
    assert float(margin_loss(cosines, torch.tensor([0, 1]))) > float(plain)
    assert float(margin_loss(cosines, torch.tensor([1, 0]))) > float(margin_loss(cosines, torch.tensor([0, 1])))


def test_a_crop_has_one_length_whatever_the_clips_and_no_mean() -> None:
    for frames in (30, CROP, 900):
        rows = cropped(example(frames, "s").bank, torch.Generator().manual_seed(1))
        assert rows.shape == (CROP, 80)
        torch.testing.assert_close(rows.mean(0), torch.zeros(80), atol=1e-4, rtol=0)


def test_no_voice_outweighs_the_others_and_held_out_ones_are_left_out() -> None:
    clips = [example(200, "many")] * (MOST_CLIPS + 5) + [example(200, "few"), example(50, "few"), example(200, "held")]
    kept = [one.record.speaker for one in training_clips(clips, frozenset({"held"}))]
    assert kept == ["many"] * MOST_CLIPS + ["few"]


def test_the_nearest_rate_leaves_the_clip_itself_out_of_its_voice() -> None:
    apart = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    assert nearest_rate(apart, ["a", "a", "b", "b"]) == 1.0
    assert nearest_rate(apart, ["a", "b", "a", "b"]) == 0.0
