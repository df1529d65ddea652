"""Files that the user names: plain ones whole or not at all, links followed, pipes and devices written to."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from stepaudio.errors import StepAudioError
from stepaudio.files import check_target, write_file


@pytest.fixture
def sink(tmp_path):
    """A device that takes everything, like the null device, in a folder of the test's own."""
    path = tmp_path / "sink"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        path.open("wb").close()
    except PermissionError:
        pytest.skip("devices can be made and opened by root only")
    return path


def test_a_plain_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"old")
    with path.open("rb") as before:
        write_file(path, b"new")
        assert before.read() == b"old"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]


@pytest.mark.parametrize("old", [b"old", None])
def test_what_a_link_leads_to_is_written_and_the_link_stays(tmp_path, old):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.wav", tmp_path / "link.wav"
    if old is not None:
        target.write_bytes(old)
    link.symlink_to(target)
    check_target(link)
    write_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["link.wav", "there"]


def test_who_reads_from_a_pipe_gets_the_bytes(tmp_path):
    path, got, data = tmp_path / "pipe", [], b"sound" * 100_000
    os.mkfifo(path)
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()), daemon=True)
    reader.start()
    check_target(path)
    write_file(path, data)
    reader.join(10)
    assert got == [data]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_pipe_is_written_by_the_name_of_its_open_end():
    end, start = os.pipe()
    write_file(Path(f"/dev/fd/{start}"), b"sound")
    os.close(start)
    with os.fdopen(end, "rb") as reader:
        assert reader.read() == b"sound"


def test_a_device_stays_a_device(sink, tmp_path):
    (tmp_path / "link").symlink_to(sink)
    for path in (sink, tmp_path / "link"):
        check_target(path)
        write_file(path, b"sound")
    assert stat.S_ISCHR(sink.stat().st_mode)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere/a.wav", "No such file or directory"),
        ("file/a.wav", "Not a directory"),
        ("folder", "Is a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("a" * 252, "File name too long"),
    ],
)
def test_what_cannot_be_written_is_told_alike_before_and_while_writing(tmp_path, name, reason):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.rglob("*"))
    for act in (check_target, lambda path: write_file(path, b"sound")):
        with pytest.raises(StepAudioError) as caught:
            act(tmp_path / name)
        assert str(caught.value) == f"The file {tmp_path / name} cannot be written: {reason}."
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_takes_no_files_is_told_before_writing(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(StepAudioError, match="Permission denied"):
        check_target(tmp_path / "a.wav")


def test_to_look_whether_a_file_can_be_written_does_not_touch_it(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"old")
    before = (tmp_path / "a.wav").stat().st_mtime_ns
    for name in ("a.wav", "b.wav"):
        check_target(tmp_path / name)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.wav"]
    assert (tmp_path / "a.wav").stat().st_mtime_ns == before
