"""The numbers for Prometheus, apart from any server."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from stepaudio.errors import GenerationError, InvalidInput
from stepaudio.metrics import Metrics
from stepaudio.types import EncodingTimes, SpeechTokens, Stage, Synthesis, Timings, Waveform

SYNTHESIS = Synthesis(
    waveform=Waveform(np.zeros(48_000, np.float32), 24_000),
    tokens=SpeechTokens(np.zeros(85, np.int64)),
    prompt_ids=(1, 2),
    timings=Timings(1.0, (Stage("Clone", 0.9, children=(Stage("LLM", 0.5, tokens=85), Stage("other", 0.4))),)),
    encoding=EncodingTimes(hit=True, hash=0.0, lookup=0.0),
    seed=1,
    stopped="end",
)


def samples(metrics: Metrics) -> dict[tuple, float]:
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in families
        for s in family.samples
        if not s.name.endswith("_created")
    }


def test_a_sound_counts_its_stages_tokens_and_speed():
    metrics = Metrics()
    metrics.made("Clone", [replace(SYNTHESIS, first_sound=0.25)], waited=2.0)
    found = samples(metrics)
    assert found["stepaudio_stage_seconds_sum", "Clone", "LLM"] == 0.5
    assert ("stepaudio_stage_seconds_sum", "Clone", "other") not in found
    assert found["stepaudio_tokens_total",] == 85
    assert found["stepaudio_tokens_per_second_sum",] == pytest.approx(170)
    assert found["stepaudio_rtf_sum", "Clone"] == 0.5
    assert found["stepaudio_first_sound_seconds_sum", "Clone"] == 2.25
    assert found["stepaudio_queue_wait_seconds_sum", "Clone"] == 2.0


def test_takes_count_together():
    metrics = Metrics()
    stages = (Stage("Clone", 0.9, children=(Stage("LLM", 0.5, tokens=3 * 85),)),)
    metrics.made("Clone", [replace(SYNTHESIS, timings=Timings(1.0, stages))] * 3, waited=0.0)
    found = samples(metrics)
    assert found["stepaudio_tokens_total",] == 3 * 85
    assert found["stepaudio_sound_seconds_total", "Clone"] == 6
    assert found["stepaudio_rtf_sum", "Clone"] == pytest.approx(1 / 6)
    assert found["stepaudio_request_seconds_count", "Clone"] == 1


def test_the_passes_of_an_edit_count_together():
    metrics = Metrics()
    passes = tuple(
        Stage(f"Pass {number}", 3.0, children=(Stage("LLM", seconds, tokens=tokens),))
        for number, seconds, tokens in ((1, 2.0, 200), (2, 1.0, 85))
    )
    failed = Stage("LLM", 7.0)
    stages = (Stage("Edit", 13.0, children=(failed, *passes)),)
    metrics.made("Edit", [replace(SYNTHESIS, timings=Timings(13.0, stages))], waited=0.0)
    found = samples(metrics)
    assert found["stepaudio_tokens_total",] == 285
    assert found["stepaudio_tokens_per_second_count",] == 1
    assert found["stepaudio_tokens_per_second_sum",] == pytest.approx(95)


def test_ends_are_told_apart():
    metrics = Metrics()
    for state, error in (
        ("done", None),
        ("failed", InvalidInput("x")),
        ("failed", GenerationError("x")),
        ("failed", ZeroDivisionError()),
        ("cancelled", None),
    ):
        metrics.ended("Clone", state, error)
    metrics.turned_away("Edit")
    found = samples(metrics)
    counts = {
        outcome: found["stepaudio_requests_total", "Clone", outcome] for outcome in ("done", "refused", "cancelled")
    }
    assert counts == {"done": 1, "refused": 1, "cancelled": 1}
    assert found["stepaudio_requests_total", "Clone", "failed"] == 2
    assert found["stepaudio_requests_turned_away_total", "Edit"] == 1


def test_two_of_them_know_nothing_of_each_other():
    first, second = Metrics(), Metrics()
    first.turned_away("Clone")
    assert ("stepaudio_requests_turned_away_total", "Clone") not in samples(second)
