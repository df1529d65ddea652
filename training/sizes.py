"""The sizes of mini's vocoder: those of the cosyvoice.yaml that is shipped with its weights."""

from __future__ import annotations

from pathlib import Path

from stepaudio.vocoder.config import FlowConfig, HiftConfig, read_config

FOLDER = Path(__file__).parent / "mini"
"""Where that file lies."""


def flow_config() -> FlowConfig:
    """Return the sizes of the flow."""
    return read_config(FOLDER).flow


def hift_config() -> HiftConfig:
    """Return the sizes of HiFT."""
    config = read_config(FOLDER).hift
    assert isinstance(config, HiftConfig)
    return config
