"""Requests through the service: one path, one log block, the same errors for clones and edits."""

from __future__ import annotations

import logging
import re
import time

import pytest

from stepaudio.audiofile import encode_wav
from stepaudio.errors import Busy, Cancelled, InvalidInput
from stepaudio.feed import SoundFeed
from stepaudio.report import MOST_LINES
from stepaudio.service import CloneRequest, EditRequest, Service
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams, Task
from tests.conftest import voice
from tests.test_log import FIXED_LINES

SHORT = {"sampling": SamplingParams(seed=3), "max_seconds": 0.6, "flow_steps": 1}
EDIT_LINE = FIXED_LINES["clone"].replace("Clone:  ", "Edit:   ")


@pytest.fixture
def audio() -> bytes:
    return encode_wav(voice(1.0))


def edit(audio: bytes, /, **fields) -> EditRequest:
    return EditRequest(**{"audio": audio, "transcript": "the words", "task": Task("vad"), **SHORT, **fields})


def clone(audio: bytes, /, **fields) -> CloneRequest:
    return CloneRequest(**{"audio": audio, "transcript": "the words", "text": "Hello.", **SHORT, **fields})


def test_an_edit_leaves_the_block_of_fixed_lines_with_its_own_name(service, audio, caplog):
    with caplog.at_level(logging.INFO, "stepaudio.service"):
        result = service.submit_edit(edit(audio)).result(60)
    block = caplog.records[-1].message
    for pattern in (EDIT_LINE, *(FIXED_LINES[name] for name in ("miss", "total", "get engine", "post-process"))):
        assert len(re.findall(pattern, block, re.MULTILINE)) == 1, pattern
    assert "Clone" not in block
    assert caplog.records[-1].facts["task"] == "Edit"
    assert result.wav[:4] == b"RIFF"
    assert result.synthesis.transcript == "the words"


def test_a_block_of_many_passes_keeps_to_its_lines_and_their_sum(service, audio, caplog):
    with caplog.at_level(logging.INFO, "stepaudio.service"):
        result = service.submit_edit(edit(audio, passes=5)).result(60)
    block = caplog.records[-1].message
    assert len(block.splitlines()) <= MOST_LINES
    assert [line.split()[0:2] for line in block.splitlines() if "Pass " in line] == [
        ["Pass", str(n)] for n in range(1, 6)
    ]
    whole = result.synthesis.timings.find("Edit")
    assert sum(child.seconds for child in whole.children) == pytest.approx(whole.seconds, abs=1e-3)
    line = next(line for line in block.splitlines() if "Pass 5" in line)
    assert re.search(r"FunASR [\d.]+s.*, LLM [\d.]+s, Flow [\d.]+s, Vocoder [\d.]+s, other [\d.]+s$", line)
    stages = caplog.records[-1].facts["stages"][1]["children"]
    assert [child["name"] for child in stages[1]["children"]] == ["FunASR", "LLM", "Flow", "Vocoder", "other"]


def test_the_tokens_of_all_passes_are_counted(service, audio):
    service.submit_edit(edit(audio, passes=3)).result(60)
    assert "stepaudio_tokens_total 75.0" in service.metrics.render().decode()


def test_an_output_and_its_transcript_are_the_next_input(service, audio):
    first = service.submit_edit(edit(audio, task=Task("paralinguistic"), new_text="the [Sigh] words")).result(60)
    chained = edit(first.wav, transcript=first.synthesis.transcript, task=Task("emotion", "sad"))
    assert service.submit_edit(chained).result(60).synthesis.transcript == "the [Sigh] words"


def test_an_edit_of_a_cloned_voice_hits_the_cache(service, audio):
    assert not service.submit_clone(clone(audio)).result(60).synthesis.cache_hit
    assert service.submit_edit(edit(audio)).result(60).synthesis.cache_hit


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"task": Task("emotion", "hungry")}, "not one of them"),
        ({"audio": b"no sound at all"}, "cannot be read"),
        ({"audio": b""}, "is empty"),
        ({"task": Task("speed", "faster"), "transcript": ""}, "transcript of the reference is empty"),
    ],
)
def test_an_edit_that_is_refused_says_so_in_the_log_and_the_next_one_runs(service, audio, caplog, fields, sentence):
    with pytest.raises(InvalidInput, match=sentence) as refused:
        service.submit_edit(edit(audio, **fields)).result(60)
    assert f"Edit refused ({refused.typename}): {refused.value}" in caplog.text
    assert service.submit_edit(edit(audio)).result(60).wav


def test_an_edit_can_be_cancelled_while_it_runs(service, audio, caplog):
    with caplog.at_level(logging.INFO, "stepaudio.service"):
        job = service.submit_edit(edit(audio, passes=5, flow_steps=50))
        while job.state == "waiting" or job.progress[0] != "Flow":
            job.wait_for_change(1.0)
        job.cancel()
        with pytest.raises(Cancelled):
            job.result(60)
    record = caplog.records[-1]
    assert re.search(
        r"^Edit cancelled\. It ran for [\d.]+s: Get engine [\d.]+s, Edit [\d.]+s \(.*LLM [\d.]+s, Flow [\d.]+s",
        record.message,
    )
    assert record.facts["event"] == "cancelled"
    assert record.facts["message"] == "Edit cancelled."
    assert [stage["name"] for stage in record.facts["stages"]] == ["Get engine", "Edit"]


def test_a_job_that_is_cancelled_before_its_turn_is_told_with_its_wait(make_engine, audio, tmp_path, caplog):
    service = Service(Settings(cache_dir=tmp_path / "cache"), make_engine)
    running, waiting = service.submit_edit(edit(audio)), service.submit_clone(clone(audio))
    with caplog.at_level(logging.INFO, "stepaudio.service"):
        time.sleep(0.1)
        waiting.cancel()
    assert re.search(r"Clone cancelled\. It ran for 0\.000s, waited 0\.[1-9]\d\ds in the queue\.$", caplog.messages[-1])
    running.cancel()
    service.close()


def test_a_failure_that_nobody_foresaw_tells_where_its_seconds_went(service, audio, caplog, monkeypatch):
    monkeypatch.setattr(service.engine.pipeline._vocoder, "sound", lambda *given, **named: [][0])
    with pytest.raises(IndexError):
        service.submit_clone(clone(audio)).result(60)
    messages = [record.message for record in caplog.records]
    assert any(
        re.search(r"^Clone failed\. It ran for .*LLM [\d.]+s, Flow [\d.]+s, Vocoder", message) for message in messages
    )
    assert "Clone failed unexpectedly." in messages


def test_edits_and_clones_wait_in_one_line(make_engine, audio, tmp_path):
    service = Service(Settings(cache_dir=tmp_path / "cache", queue_limit=1), make_engine)
    jobs = [service.submit_edit(edit(audio)), service.submit_clone(clone(audio))]
    with pytest.raises(Busy):
        service.submit_edit(edit(audio))
    service.start()
    assert all(job.result(120).wav for job in jobs)
    service.close()


def test_takes_come_as_files_of_their_own_with_one_block(service, audio, caplog):
    with caplog.at_level(logging.INFO, "stepaudio.service"):
        result = service.submit_clone(clone(audio, takes=3)).result(60)
    assert [take.synthesis.seed for take in result.takes] == [3, 4, 5]
    assert result.takes[0] is result
    assert len({take.wav for take in result.takes}) == 3
    assert all(take.wav[:4] == b"RIFF" for take in result.takes)
    assert "in 3 sequences" in caplog.records[-1].message
    assert " in 3 takes, RTF " in caplog.records[-1].message
    facts = caplog.records[-1].facts
    assert facts["takes"] == 3
    assert facts["audio_seconds"] == pytest.approx(sum(take.synthesis.waveform.seconds for take in result.takes))


def test_a_request_for_one_take_has_no_others(service, audio):
    result = service.submit_clone(clone(audio)).result(60)
    assert result.takes == (result,)


@pytest.mark.parametrize("takes", [0, 17])
def test_a_number_of_takes_out_of_range_is_one_sentence(service, audio, takes):
    with pytest.raises(InvalidInput, match="between 1 and 16"):
        service.submit_clone(clone(audio, takes=takes)).result(60)


def test_takes_are_not_streamed(service, audio):
    feed = SoundFeed()
    job = service.submit_stream(clone(audio, takes=2), feed)
    with pytest.raises(InvalidInput, match="Several takes"):
        job.result(60)
