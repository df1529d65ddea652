"""The package as a library: its public names, and the README's lines as they stand."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import soundfile

import stepaudio
from stepaudio import (
    InvalidInput,
    Settings,
    StepAudioError,
    Waveform,
    load_pipeline,
    load_settings,
    read_sound,
    write_sound,
)
from tests.conftest import ROOT, voice
from tests.readme import README


@pytest.fixture
def sound(tmp_path):
    soundfile.write(tmp_path / "voice.wav", voice(1.0).samples, 24000, subtype="FLOAT")
    return tmp_path / "voice.wav"


def test_the_lines_of_the_readme_clone_a_voice(tiny_weights, sound, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = [block for block in blocks if "load_pipeline" in block]
    assert len([line for line in lines.splitlines() if line.strip()]) == 5
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STEPAUDIO_")}
    environment |= {
        "PYTHONPATH": str(ROOT),
        "STEPAUDIO_WEIGHTS": str(tiny_weights),
        "STEPAUDIO_MAX_OUTPUT_SECONDS": "0.6",
        "STEPAUDIO_DEVICE": "cpu",
    }
    subprocess.run(
        [os.path.abspath(sys.executable), "-c", lines], cwd=tmp_path, env=environment, check=True, timeout=300
    )
    made, rate = soundfile.read(tmp_path / "cloned.wav")
    assert (len(made), rate) == (2880 * 5, 24000)
    assert np.abs(made).max() > 1e-3


def test_every_public_name_is_there_and_says_what_it_is():
    for name in stepaudio.__all__:
        assert inspect.getdoc(getattr(stepaudio, name)), name
    assert sorted(stepaudio.__all__) == stepaudio.__all__


def test_importing_the_package_loads_no_network_library():
    check = "import sys, stepaudio; sys.exit(any(name in sys.modules for name in ('torch', 'gradio', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0


def test_a_pipeline_is_loaded_from_settings_and_closed(tiny_weights, sound, tmp_path):
    settings = Settings(weights=str(tiny_weights), cache_dir=tmp_path / "cache", device="cpu")
    pipeline = load_pipeline(settings)
    reference = stepaudio.Reference(read_sound(sound, settings), "words")
    task = stepaudio.Task("speed", "faster")
    made = pipeline.edit(reference, task, max_seconds=0.6, flow_steps=1)
    assert made.transcript == "words"
    pipeline.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        pipeline.edit(reference, task, max_seconds=0.6, flow_steps=1)


def test_the_settings_of_the_readme_are_taken_by_name_and_wrong_ones_are_told_in_one_sentence():
    (call,) = re.findall(r"`load_pipeline\((.*?)\)` takes the settings", README.read_text(encoding="utf-8"))
    assert call == 'load_settings({"device": "cpu"})'
    assert load_settings({"device": "cpu"}) == Settings(device="cpu")
    with pytest.raises(InvalidInput, match=r"^The setting device has the value 'tpu': [^\n]*\.$"):
        load_settings({"device": "tpu"})
    with pytest.raises(InvalidInput, match=r"^The setting devise has the value 'cpu': [^\n]*\.$"):
        load_settings({"devise": "cpu"})


def test_sound_is_read_within_the_limits_and_what_is_cut_is_told(sound, caplog):
    assert read_sound(sound).seconds == 1.0
    assert read_sound(str(sound), Settings(max_reference_seconds=0.75)).seconds == 0.75
    assert "its first 0.75 s are used" in caplog.text
    with pytest.raises(InvalidInput, match=r"at least 2 s"):
        read_sound(sound, Settings(min_reference_seconds=2))
    with pytest.raises(InvalidInput, match=r"nowhere\.wav cannot be read: No such file"):
        read_sound("nowhere.wav")


def test_sound_is_written_as_its_ending_says(tmp_path):
    write_sound(voice(0.5), tmp_path / "a.flac")
    assert (tmp_path / "a.flac").read_bytes()[:4] == b"fLaC"
    with pytest.raises(InvalidInput, match="ends in no output format"):
        write_sound(voice(0.5), tmp_path / "a.doc")
    with pytest.raises(StepAudioError, match="cannot be written: No such file or directory"):
        write_sound(Waveform(np.zeros(10, np.float32), 24000), tmp_path / "nowhere" / "a.wav")
