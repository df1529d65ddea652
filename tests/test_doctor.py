"""doctor: one screen, every part really loaded, what is missing named."""

from __future__ import annotations

import shutil

import pytest

from stepaudio.doctor import Examination, Finding, examine, render
from stepaudio.settings import Settings


@pytest.fixture
def settings(tiny_weights, tmp_path):
    return lambda **more: Settings(**{"weights": str(tiny_weights), "cache_dir": tmp_path / "cache", **more})


def found(examination: Examination, name: str) -> Finding:
    (finding,) = [finding for finding in examination.findings if finding.name == name]
    return finding


def test_a_complete_installation_is_healthy_and_fits_one_screen(settings):
    examination = examine(settings(device="cpu"))
    assert examination.healthy
    text = render(examination)
    assert len(text.splitlines()) <= 24
    for name in ("Python", "torch", "Device", "GPU driver", "FunASR encoder", "Language model", "Cache", "Weights"):
        assert found(examination, name).found
    assert "CPUExecutionProvider" in found(examination, "Semantic tokenizer").found
    assert "noise, not speech" in text
    assert "funasr 1." in found(examination, "Packages").found


def test_a_damaged_part_is_named_and_the_others_are_still_looked_at(settings, tiny_weights, tmp_path):
    folder = shutil.copytree(tiny_weights, tmp_path / "damaged")
    (folder / "Step-Audio-EditX" / "CosyVoice-300M-25Hz" / "flow.pt").write_bytes(b"no")
    examination = examine(settings(weights=str(folder)))
    assert not examination.healthy
    assert found(examination, "Flow and HiFT").mark == "bad"
    assert "flow.pt" in found(examination, "Flow and HiFT").found
    assert found(examination, "Language model").mark == "good"
    assert "❌" in render(examination)


def test_a_cache_that_cannot_be_written_is_named(settings, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert found(examine(settings()), "Cache").mark == "bad"


def test_a_weights_folder_that_is_not_there_is_named(settings):
    finding = found(examine(settings(weights="nowhere")), "Weights")
    assert finding.mark == "bad"
    assert "nowhere" in finding.found
