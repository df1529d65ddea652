"""A FunASR folder loads offline, refuses what is damaged by name, and changes nothing else in the process."""

from __future__ import annotations

import json
import logging
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from stepaudio.encoder.funasr_folder import FILES, load_funasr
from stepaudio.errors import WeightsError

CPU = torch.device("cpu")


@pytest.fixture
def folder(conformance: Path, tmp_path: Path) -> Path:
    """A copy of the recorded model's folder that a test may damage."""
    copy = tmp_path / "paraformer"
    copy.mkdir()
    for file in (conformance / "paraformer/model").iterdir():
        shutil.copyfile(file, copy / file.name)
    return copy


SIDE_EFFECTS = """
import logging, random, sys
import numpy as np, torch
from pathlib import Path
from stepaudio.encoder.funasr_folder import load_funasr
torch.set_num_threads(3); random.seed(5); np.random.seed(5); torch.manual_seed(5)
before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
root = logging.getLogger()
logs = root.level, list(root.handlers), torch.get_num_threads()
load_funasr(Path(sys.argv[1]), torch.device("cpu"))
assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before, "generators"
assert (root.level, list(root.handlers), torch.get_num_threads()) == logs, "logging or threads"
assert not {"whisper", "modelscope"} & set(sys.modules), "imports too much"
"""


def test_loading_in_a_fresh_process_leaves_threads_generators_and_logging_alone_and_prints_nothing(
    conformance: Path,
) -> None:
    command = [sys.executable, "-c", SIDE_EFFECTS, str(conformance / "paraformer/model")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_loading_again_leaves_threads_generators_and_logging_alone(folder: Path) -> None:
    root = logging.getLogger()
    before = torch.get_num_threads(), root.level, list(root.handlers), torch.get_rng_state()
    python, numpy = random.getstate(), np.random.get_state()[1].tolist()
    load_funasr(folder, CPU)
    after = torch.get_num_threads(), root.level, list(root.handlers), torch.get_rng_state()
    assert after[:3] == before[:3]
    torch.testing.assert_close(after[3], before[3])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == (python, numpy)


def test_loading_opens_no_connection(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    loaded = load_funasr(folder, CPU)
    assert loaded.can_transcribe
    assert loaded.frontend.dither == 0.0
    assert not loaded.model.training


def test_the_loaded_model_transcribes(folder: Path) -> None:
    loaded = load_funasr(folder, CPU)
    sound = torch.randn(16000, generator=torch.Generator().manual_seed(1)) * 0.1
    options = {**loaded.options, "key": ["x"], "is_final": True, "chunk_size": [0, 4, 5], "cache": {}}
    with torch.inference_mode():
        (result,), _ = loaded.model.inference([sound], **options)
    assert isinstance(result["text"], str)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_its_folder(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=f"The file {name} is missing in the FunASR folder {folder}"):
        load_funasr(folder, CPU)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_named_with_its_folder(name: str, folder: Path) -> None:
    (folder / name).write_bytes(b"")
    if name == "seg_dict":  # an empty dictionary of spellings is a dictionary
        assert load_funasr(folder, CPU).can_transcribe
        return
    with pytest.raises(WeightsError) as caught:
        load_funasr(folder, CPU)
    assert name in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["model.pt", "am.mvn", "config.yaml", "tokens.json"])
def test_a_truncated_file_is_named_with_its_folder(name: str, folder: Path) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError) as caught:
        load_funasr(folder, CPU)
    assert name in str(caught.value)
    assert str(folder) in str(caught.value)


def test_another_kind_of_model_is_refused(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["encoder_conf"]["input_layer"] = "pe"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(WeightsError, match=r"encoder_conf\.input_layer is 'pe', 'pe_online' is needed"):
        load_funasr(folder, CPU)


def test_weights_without_a_tensor_of_the_encoder_are_refused(folder: Path) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    del state["encoder.after_norm.weight"]
    torch.save(state, folder / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt in .* lacks the tensor encoder\.after_norm\.weight"):
        load_funasr(folder, CPU)


def test_weights_without_a_decoder_still_encode_but_do_not_transcribe(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.load(folder / "model.pt", weights_only=True)
    kept = {name: tensor for name, tensor in state.items() if name.startswith("encoder.")}
    torch.save({"state_dict": kept}, folder / "model.pt")
    with caplog.at_level(logging.WARNING):
        loaded = load_funasr(folder, CPU)
    assert not loaded.can_transcribe
    assert "no transcription" in caplog.text


def test_a_pickle_that_would_run_code_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"encoder.x": Trap()}, folder / "model.pt")
    with pytest.raises(WeightsError, match=r"model\.pt"):
        load_funasr(folder, CPU)
    assert not (tmp_path / "sprung").exists()


def test_the_configuration_may_name_augmentation_for_training(folder: Path) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config.update(specaug="SpecAugLFR", specaug_conf={"apply_time_warp": False})
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "configuration.json").write_text(json.dumps({}))
    assert load_funasr(folder, CPU).can_transcribe
