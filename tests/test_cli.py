"""The command line: one sentence and a status for what goes wrong, no traceback."""

from __future__ import annotations

import argparse
import inspect
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from stepaudio.cli import build_parser, main
from tests.conftest import ROOT


def run(*arguments: str, options: dict[str, Any] | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own; ``options`` are those of subprocess.run."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STEPAUDIO_")}
    return subprocess.run(
        [sys.executable, "-m", "stepaudio", *arguments],
        **{"cwd": ROOT, "env": {**clean, "PYTHONUTF8": "1", **environment}, "stdout": subprocess.PIPE,
           "stderr": subprocess.PIPE, "text": True, "check": False, **(options or {})},
    )  # fmt: skip


def test_tiny_writes_a_folder_that_doctor_finds_healthy(tmp_path):
    made = run("tiny", str(tmp_path / "weights"))
    assert made.returncode == 0, made.stderr
    assert str(tmp_path / "weights") in made.stdout
    seen = run("doctor", "--weights", str(tmp_path / "weights"), "--cache-dir", str(tmp_path / "cache"))
    assert seen.returncode == 0, seen.stdout + seen.stderr
    assert "Everything needed is there." in seen.stdout


def test_tiny_refuses_a_folder_with_other_things_in_it(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    done = run("tiny", str(tmp_path))
    assert done.returncode == 2
    assert "does not hold tiny weights" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "thesis.txt").exists()


def test_an_unknown_variable_ends_the_program_with_one_sentence():
    done = run("doctor", STEPAUDIO_CACHEDIR="x")
    assert done.returncode == 2
    assert "STEPAUDIO_CACHEDIR" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_serving_named_weights_that_are_not_there_ends_with_one_sentence(tmp_path):
    done = run("serve", "--weights", "nowhere", "--models-dir", str(tmp_path), "--port", "0")
    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_ends_the_program_with_one_sentence(tiny_weights, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", "--weights", str(tiny_weights), "--cache-dir", str(tmp_path), "--port", port)
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "The page is at" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", ["serve", "clone", "edit", "batch", "voices", "download", "doctor", "tiny", "export-encoder", "bench"]
)
def test_each_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args([command, "--help"])
    assert ended.value.code == 0
    assert "usage: python -m stepaudio " + command in capsys.readouterr().out


@pytest.fixture
def unread() -> Iterator[int]:
    """The writing end of a pipe that nobody reads any more."""
    end, start = os.pipe()
    os.close(end)
    yield start
    os.close(start)


# That nobody reads the help is no error to argparse, but for the first releases of Python 3.11.
HELP_UNREAD = 0 if "OSError" in inspect.getsource(argparse.ArgumentParser._print_message) else 141


@pytest.mark.parametrize(("arguments", "status"), [(("voices", "list"), 141), (("clone", "--help"), HELP_UNREAD)])
def test_who_stops_reading_the_output_is_told_nothing(unread, tmp_path, arguments, status):
    done = run(*arguments, STEPAUDIO_DATA_DIR=str(tmp_path), options={"stdout": unread})
    assert (done.returncode, done.stderr) == (status, "")


def test_who_stops_reading_what_is_told_gets_no_other_status(unread):
    done = run("voices", "list", STEPAUDIO_NOTHING="x", options={"stderr": unread})
    assert (done.returncode, done.stdout) == (2, "")


def test_output_that_cannot_be_written_is_one_sentence(tmp_path):
    with open("/dev/full", "wb") as full:
        done = run("voices", "list", STEPAUDIO_DATA_DIR=str(tmp_path), options={"stdout": full})
    assert (done.returncode, done.stderr) == (2, "Standard output cannot be written: No space left on device.\n")
    closed = {"stdout": None, "preexec_fn": lambda: os.close(1)}
    done = run("voices", "list", STEPAUDIO_DATA_DIR=str(tmp_path), options=closed)
    assert (done.returncode, done.stderr) == (2, "Standard output is closed.\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_lacks_a_character_gets_the_rest(tmp_path, encoding):
    done = run("doctor", "--weights", "nowhere", PYTHONUTF8="0", PYTHONIOENCODING=encoding)
    assert done.returncode == 1
    assert "Something is missing: see the ? above." in done.stdout
    assert "Traceback" not in done.stderr


def test_an_interrupt_while_the_commands_are_put_together_has_its_status_too(monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("stepaudio.cli.build_parser", interrupted)
    assert main(["voices", "list"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


def test_an_interrupt_ends_with_its_own_status(monkeypatch, capsys, tmp_path):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("stepaudio.tiny.write_tiny", interrupted)
    assert main(["tiny", str(tmp_path / "x")]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"


@pytest.mark.parametrize(("before", "after"), [("", "1000"), ("50", "50")])
def test_openmp_is_told_how_long_to_wait_before_torch_loads_it(before, after):
    """A hook on the import of torch looks at what the C library, and so OpenMP, finds in the environment."""
    script = f"""
import ctypes, os, sys
os.environ.pop("GOMP_SPINCOUNT", None)
if {before!r}:
    os.environ["GOMP_SPINCOUNT"] = {before!r}
getenv = ctypes.CDLL(None).getenv
getenv.restype = ctypes.c_char_p
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(getenv(b"GOMP_SPINCOUNT").decode())
sys.meta_path.insert(0, Watch())
from stepaudio.cli import main
main(["doctor", "--weights", "nothing"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[0] == after, done.stderr
