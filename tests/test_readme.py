"""The README: its generated parts are up to date, its commands exist, its test command is CI's."""

from __future__ import annotations

import re

import pytest

from stepaudio.cli import build_parser
from tests.conftest import ROOT
from tests.readme import README, renewed
from tests.test_log import FIXED_LINES, PREFIX

TEXT = README.read_text(encoding="utf-8")


def test_the_generated_parts_are_up_to_date():
    """If this fails: python -m tests.readme"""
    assert renewed(TEXT) == TEXT


def test_the_commands_it_names_exist():
    commands = set(re.findall(r"python -m stepaudio ([\w-]+)", TEXT))
    assert {"serve", "download", "doctor", "tiny", "export-encoder", "bench"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as ended:
            build_parser().parse_args([command, "--help"])
        assert ended.value.code == 0


def test_the_command_that_runs_the_tests_is_the_one_of_ci():
    (line,) = [line for line in TEXT.splitlines() if "scripts/check" in line]
    assert line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


def test_the_links_lead_to_files_of_the_repository():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_log_it_shows_has_the_fixed_lines():
    shown = [line for line in TEXT.splitlines() if re.match(r"\d{4}-\d\d-\d\d", line)]
    for name in ("miss", "encoding", "total", "get engine", "clone", "post-process"):
        assert sum(bool(re.match(PREFIX + FIXED_LINES[name], line)) for line in shown) == 1, name
