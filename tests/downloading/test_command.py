"""``python -m stepaudio download``: what it says and when it ends."""

from __future__ import annotations

import argparse
import io
import subprocess
import sys

import pytest

from stepaudio.download import ProgressLine, add_arguments, download, run
from stepaudio.errors import InvalidInput, WeightsError
from stepaudio.snapshot import Progress, readable
from stepaudio.transfer import HubError
from tests.conftest import ROOT
from tests.downloading.kit import (
    BIG,
    REPOS,
    assert_complete,
    big_part,
)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command fetch the repositories of the stand-in."""
    monkeypatch.setitem(download.__kwdefaults__, "repos", REPOS)


@pytest.mark.usefixtures("acme")
def test_the_command_fetches_and_says_so(hub, tmp_path):
    stream = io.StringIO()
    args = arguments("--source", "modelscope", "--endpoint", hub.url + "/")
    assert run(args, tmp_path, stream=stream) == 0
    assert_complete(tmp_path / "step-audio-editx")
    assert "The weights are complete in" in stream.getvalue()
    assert "6 files fetched from modelscope, 0 were there already" in stream.getvalue()
    assert "100.0 %" in stream.getvalue()


@pytest.mark.usefixtures("acme")
def test_the_command_passes_the_token_on(hub, tmp_path):
    args = arguments("--source", "huggingface", "--endpoint", hub.url)
    assert run(args, tmp_path, token="secret", stream=io.StringIO()) == 0
    assert {request.authorization for request in hub.requests} == {"Bearer secret"}


@pytest.mark.usefixtures("acme")
def test_an_interruption_says_that_the_next_run_goes_on(hub, tmp_path, monkeypatch):
    def interrupt(line: ProgressLine, progress: Progress) -> None:
        if progress.file.endswith(BIG) and progress.done > 100_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressLine, "__call__", interrupt)
    stream = io.StringIO()
    args = arguments("--source", "huggingface", "--endpoint", hub.url)
    assert run(args, tmp_path, stream=stream) == 130
    assert "run the same command again and it goes on" in stream.getvalue()
    assert big_part(tmp_path / "step-audio-editx").stat().st_size > 0
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".."])
def test_the_folder_name_must_be_plain(tmp_path, name):
    with pytest.raises(InvalidInput, match="one plain name"):
        run(arguments("--name", name), tmp_path, stream=io.StringIO())


def test_an_endpoint_needs_a_source(tmp_path):
    with pytest.raises(InvalidInput, match="needs a --source"):
        run(arguments("--endpoint", "https://mirror"), tmp_path, stream=io.StringIO())


@pytest.mark.usefixtures("acme")
def test_progress_goes_to_stderr(hub, tmp_path, capsys):
    run(arguments("--source", "huggingface", "--endpoint", hub.url), tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "100.0 %" in captured.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_rewritten_with_speed_and_time_left():
    stream, now = Terminal(), [0.0]
    line = ProgressLine(stream, clock=lambda: now[0])
    for second, done in ((0.0, 1_000_000_000), (0.1, 1_500_000_000), (10.0, 2_000_000_000)):
        now[0] = second
        line(Progress("a.pt", 0, 9, done, 5_000_000_000))
    line.end()
    assert stream.getvalue() == (
        " 20.0 %  1.00 GB of 5.00 GB  a.pt\x1b[K\r 40.0 %  2.00 GB of 5.00 GB  100 MB/s  0:00:30 left  a.pt\x1b[K\r\n"
    )


def test_a_log_gets_a_line_for_each_file_and_now_and_then():
    stream, now = io.StringIO(), [0.0]
    line = ProgressLine(stream, clock=lambda: now[0])
    for second, file in ((0.0, "a"), (5.0, "a"), (16.0, "a"), (17.0, "b")):
        now[0] = second
        line(Progress(file, 0, 9, 10, 1000))
    line.end()
    assert [text[-1] for text in stream.getvalue().splitlines()] == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("count", "text"), [(9_230_000_000, "9.23 GB"), (14_200_000, "14 MB"), (2_000, "2 kB"), (120, "120 bytes")]
)
def test_bytes_are_told_as_people_read_them(count, text):
    assert readable(count) == text


def test_a_hub_error_is_a_weights_error():
    assert issubclass(HubError, WeightsError)


def test_the_command_needs_no_heavy_library():
    """Fetching weights must work quickly and where torch does not even import."""
    script = "import sys, stepaudio.download; print(sorted({'torch', 'gradio', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
