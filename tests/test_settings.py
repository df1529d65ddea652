"""Settings: flags before environment before defaults; nothing unknown passes."""

from __future__ import annotations

import argparse
import os

import pytest

from stepaudio.errors import InvalidInput
from stepaudio.settings import Settings, add_flags, flags_from, load_settings, markdown_table, report_to_nobody


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("STEPAUDIO_")]:
        monkeypatch.delenv(name)


def parse(*arguments: str) -> dict:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return flags_from(parser.parse_args(arguments))


def test_a_flag_wins_over_the_environment_and_that_over_the_default(monkeypatch):
    assert load_settings().port == 7860
    monkeypatch.setenv("STEPAUDIO_PORT", "8000")
    assert load_settings().port == 8000
    assert load_settings(parse("--port", "9000")).port == 9000


def test_every_setting_has_a_flag_and_a_row_in_the_table():
    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = parser.format_help()
    table = markdown_table()
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text
        assert f"`STEPAUDIO_{name.upper()}`" in table


def test_an_unknown_variable_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setenv("STEPAUDIO_CACHE_DIRR", "x")
    with pytest.raises(InvalidInput, match="STEPAUDIO_CACHE_DIRR"):
        load_settings()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--port", "abc"),
        ("--device", "tpu"),
        ("--top-p", "2"),
        ("--cache-megabytes", "0"),
        ("--host", ""),  # would be every interface
        ("--max-reference-seconds", "inf"),
        ("--request-seconds", "inf"),
        ("--passage-seconds", "nan"),
    ],
)
def test_a_value_outside_its_limits_is_one_sentence_that_names_the_setting(flag, value):
    with pytest.raises(InvalidInput, match=flag[2:].replace("-", "_")) as caught:
        load_settings(parse(flag, value))
    assert "\n" not in str(caught.value)


def test_settings_cannot_be_changed_afterwards():
    settings = load_settings()
    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize(("before", "after"), [(None, "1"), ("0", "0")])
def test_libraries_report_to_nobody_unless_the_operator_wants_it(monkeypatch, before, after):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", before or "")
    if before is None:
        monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    report_to_nobody()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == after
