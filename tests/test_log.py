"""The log: every fixed line as operators grep it, the block in one piece, the id in each prefix."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from dataclasses import replace

import numpy as np
import pytest

from stepaudio.log import configure_logging, request_context
from stepaudio.report import cache_lines, request_block, request_record
from stepaudio.types import EncodingTimes, SpeechTokens, Stage, Synthesis, Timings, Waveform

PREFIX = r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO \[[0-9a-z-]+\] "
FIXED_LINES = {
    "miss": r"❌ FunASR cache MISS, encoding\.\.\.$",
    "encoding": r"⏱️ FunASR encoding: \d+\.\d{3}s \(encode: \d+\.\d{3}s, merge: \d+\.\d{3}s\)$",
    "hit": r"✅ FunASR cache HIT! Total: \d+\.\d{3}s \(hash: \d+\.\d{3}s, lookup: \d+\.\d{3}s\)$",
    "total": r"⏱️ Total time: \d+\.\d{3}s$",
    "get engine": r"   - Get engine:  [ \d]+\.\d{3}s  \(\d+\.\d%\)$",
    "clone": r"   - Clone:       [ \d]+\.\d{3}s  \(\d+\.\d%\)$",
    "post-process": r"   - Post-process:[ \d]+\.\d{3}s  \(\d+\.\d%\)$",
}


def synthesis(hit: bool) -> Synthesis:
    parts = tuple(Stage(name, 0.4, busy=0.9) for name in ("Mel", "Speaker", "Semantic", "Linguistic"))
    funasr = Stage("FunASR", 2.0, note="hit" if hit else "miss")
    if not hit:
        funasr = Stage("FunASR", 2.0, None, "miss", (*parts, Stage("Cache write", 0.1), Stage("other", 0.3)))
    clone = Stage(
        "Clone",
        11.972,
        children=(
            Stage("Decode audio", 0.1),
            funasr,
            Stage("LLM", 6.0, note="prefill 0.1s, 100 tokens, 17.0 tokens/s"),
            Stage("Flow", 2.0),
            Stage("Vocoder", 1.0),
            Stage("other", 0.872),
        ),
    )
    stages = (Stage("Get engine", 0.0), clone, Stage("Post-process", 0.074))
    return Synthesis(
        waveform=Waveform(np.zeros(48000, np.float32), 24000),
        tokens=SpeechTokens(np.zeros(5, np.int64)),
        prompt_ids=(1, 4),
        timings=Timings(12.046, stages),
        encoding=EncodingTimes(hit, 0.012, 0.003, 0.0 if hit else 4.79, 0.0 if hit else 0.022),
        seed=7,
        stopped="end",
    )


@pytest.fixture
def logged():
    root, package = logging.getLogger(), logging.getLogger("stepaudio")
    before = (root.handlers[:], root.level, package.level)
    stream = io.StringIO()
    yield lambda log_format="text": (configure_logging("INFO", log_format, stream), stream)[1]
    root.handlers[:], package.level = before[0], before[2]
    root.setLevel(before[1])
    logging.captureWarnings(False)


@pytest.mark.parametrize("name", FIXED_LINES)
def test_each_fixed_line_stands_in_the_log_with_its_prefix(name, logged):
    stream = logged()
    with request_context("ab12"):
        logging.getLogger("stepaudio.test").info("%s", request_block(synthesis(hit=name == "hit")))
    matches = [line for line in stream.getvalue().splitlines() if re.match(PREFIX + FIXED_LINES[name], line)]
    assert len(matches) == 1


def test_the_report_of_the_predecessor_is_reproduced_to_the_letter():
    lines = request_block(synthesis(hit=False)).splitlines()
    for expected in (
        "❌ FunASR cache MISS, encoding...",
        "⏱️ FunASR encoding: 4.812s (encode: 4.790s, merge: 0.022s)",
        "⏱️ Total time: 12.046s",
        "   - Get engine:   0.000s  (0.0%)",
        "   - Clone:       11.972s  (99.4%)",
        "   - Post-process: 0.074s  (0.6%)",
    ):
        assert expected in lines
    (hit,) = cache_lines(EncodingTimes(True, 0.012, 0.003))
    assert hit == "✅ FunASR cache HIT! Total: 0.015s (hash: 0.012s, lookup: 0.003s)"


def test_a_stream_tells_its_first_sound_and_nothing_else_changes():
    whole = synthesis(hit=True)
    stream = replace(whole, first_sound=0.4321)
    *lines, last = request_block(stream).splitlines()
    assert lines == request_block(whole).splitlines()[:-1]
    assert last == "   audio 2.00s, RTF 6.023, first sound 0.432s, seed 7, stopped: end"
    assert request_record("Clone", stream)["first_sound_seconds"] == 0.4321
    assert "first_sound_seconds" not in request_record("Clone", whole)


def test_a_block_has_at_most_twenty_lines():
    assert len(request_block(synthesis(hit=False)).splitlines()) <= 20


def test_blocks_of_parallel_requests_never_interleave(logged):
    stream = logged()
    logger = logging.getLogger("stepaudio.test")

    def request(name: str) -> None:
        for _ in range(50):
            with request_context(name):
                logger.info("%s", request_block(synthesis(hit=False)))

    threads = [threading.Thread(target=request, args=(name,)) for name in ("aaaa", "bbbb")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    size = len(request_block(synthesis(hit=False)).splitlines())
    assert len(lines) == 100 * size
    for start in range(0, len(lines), size):
        ids = {re.search(r"\[(\w+)\]", line).group(1) for line in lines[start : start + size]}
        assert len(ids) == 1


def test_json_gives_one_object_a_request(logged):
    stream = logged("json")
    result = synthesis(hit=True)
    with request_context("ab12"):
        logging.getLogger("stepaudio.test").info(
            "%s", request_block(result), extra={"facts": request_record("Clone", result)}
        )
    (line,) = stream.getvalue().splitlines()
    record = json.loads(line)
    assert record["id"] == "ab12"
    assert record["cache_hit"] is True
    assert record["total_seconds"] == 12.046
    assert [stage["name"] for stage in record["stages"]] == ["Get engine", "Clone", "Post-process"]


def test_chatter_of_libraries_is_not_logged_but_their_warnings_are(logged):
    stream = logged()
    logging.getLogger("uvicorn.access").info("GET /health/live")
    logging.getLogger("httpx").info("request")
    logging.getLogger("anything").warning("worth knowing")
    text = stream.getvalue()
    assert "GET" not in text
    assert "request" not in text
    assert "worth knowing" in text


def test_the_last_thirty_lines_of_a_log_hold_a_miss_and_the_hit_behind_it():
    lines = [*request_block(synthesis(hit=False)).splitlines(), *request_block(synthesis(hit=True)).splitlines()]
    assert len(lines) <= 30
    assert "       FunASR             2.000s  miss  other 0.300s" in lines
    assert "       other              0.872s" in lines
