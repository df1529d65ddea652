"""The fingerprint changes with every file and constant that an encoding depends on, and with nothing else."""

from __future__ import annotations

import re
import shutil
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

import pytest

from stepaudio import audio, features
from stepaudio.encoder import s3, sanm
from stepaudio.encoder.fingerprint import encoder_fingerprint, preprocessing_constants
from stepaudio.errors import WeightsError
from stepaudio.features import MelConfig


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("a.onnx", "b.npy"):
        (folder / name).write_bytes(name.encode() * 1000)
    return [folder / "a.onnx", folder / "b.npy"]


def test_the_same_files_and_constants_give_the_same_fingerprint_in_another_folder(
    files: list[Path], tmp_path: Path
) -> None:
    constants = preprocessing_constants(MelConfig())
    first = encoder_fingerprint(files, constants)
    assert len(first) == 64
    assert first == encoder_fingerprint(files, preprocessing_constants(MelConfig()))
    moved = shutil.copytree(files[0].parent, tmp_path / "elsewhere")
    assert encoder_fingerprint([moved / path.name for path in files], constants) == first


def test_one_changed_byte_changes_the_fingerprint(files: list[Path]) -> None:
    before = encoder_fingerprint(files, {})
    content = bytearray(files[1].read_bytes())
    content[500] ^= 1
    files[1].write_bytes(content)
    assert encoder_fingerprint(files, {}) != before


def test_another_name_changes_the_fingerprint(files: list[Path]) -> None:
    before = encoder_fingerprint(files, {})
    renamed = files[1].rename(files[1].with_name("c.npy"))
    assert encoder_fingerprint([files[0], renamed], {}) != before


def test_bytes_that_move_from_one_file_to_the_next_change_the_fingerprint(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    paths[0].write_bytes(b"12")
    paths[1].write_bytes(b"3")
    before = encoder_fingerprint(paths, {})
    paths[0].write_bytes(b"1")
    paths[1].write_bytes(b"23")
    assert encoder_fingerprint(paths, {}) != before


# What only tells whether a model is the right one, and what follows from other constants.
WITHOUT_EFFECT = {(s3, "CODE_RATE"), (s3, "COUNT_TOLERANCE"), (sanm, "WINDOW"), (sanm, "REMEMBERED"), (sanm, "MEMORY")}


def numbers_of(module: ModuleType) -> list[str]:
    """Return the names of the numbers that a module defines itself and that an encoding depends on."""
    names = re.findall(r"^([A-Z]\w+) = ", Path(str(module.__file__)).read_text(encoding="utf-8"), re.MULTILINE)
    numbers = [name for name in names if isinstance(getattr(module, name), int | float)]
    return [name for name in numbers if (module, name) not in WITHOUT_EFFECT]


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in (audio, features, s3, sanm) for name in numbers_of(module)]
)
def test_every_constant_changes_the_fingerprint(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    before = encoder_fingerprint(files, preprocessing_constants(MelConfig()))
    monkeypatch.setattr(module, name, getattr(module, name) + 1)
    assert encoder_fingerprint(files, preprocessing_constants(MelConfig())) != before


@pytest.mark.parametrize("field", [field.name for field in fields(MelConfig)])
def test_every_setting_of_the_mel_changes_the_fingerprint(files: list[Path], field: str) -> None:
    before = encoder_fingerprint(files, preprocessing_constants(MelConfig()))
    other = replace(MelConfig(), **{field: getattr(MelConfig(), field) + 1})
    assert encoder_fingerprint(files, preprocessing_constants(other)) != before


def test_a_missing_file_is_named(files: list[Path]) -> None:
    files[0].unlink()
    with pytest.raises(WeightsError, match=rf"The file a\.onnx in {files[0].parent} cannot be read"):
        encoder_fingerprint(files, {})
