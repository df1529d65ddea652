"""The answer to the report: up to date, the same figures in both languages, and the arithmetic of its projection."""

from __future__ import annotations

import json
import re
from string import Formatter

import pytest

from stepaudio.bench import documents, predecessor
from stepaudio.bench.answer import answer
from stepaudio.bench.markdown import seconds, table
from stepaudio.bench.projection import project
from stepaudio.bench.words import WORDS
from stepaudio.errors import InvalidInput
from tests.conftest import ROOT

RESULTS = json.loads((ROOT / "benchmarks" / "suite.json").read_text(encoding="utf-8"))


def test_the_documents_are_up_to_date():
    """If this fails: python -m tests.readme"""
    for path, text in documents.renewed(ROOT).items():
        assert path.read_text(encoding="utf-8") == text, path.name


def test_both_languages_have_the_same_words_and_places_for_figures():
    def places(text: str) -> list[str]:
        return sorted(f"{name}:{shape}" for _, name, shape, _ in Formatter().parse(text) if name)

    assert WORDS["en"].keys() == WORDS["zh"].keys()
    for key, text in WORDS["en"].items():
        assert places(text) == places(WORDS["zh"][key]), key


def test_both_languages_tell_the_same_figures():
    def figures(text: str) -> list[str]:
        return sorted(re.findall(r"\d+\.\d+", text))

    english, chinese = answer(RESULTS, "en"), answer(RESULTS, "zh")
    assert figures(english) == figures(chinese)
    assert len(figures(english)) > 100
    assert not re.search(r"\d\.\d{5}", english), "a figure is not rounded"
    assert english.count("\n|") == chinese.count("\n|")


def test_the_reports_figures_stand_beside_ours():
    text = answer(RESULTS, "en")
    for figure in ("24.0 s", "17.0 s", "12.0 s", "8.168 s", "8.672 s", "NVIDIA L40S", "10.8 s", "9.2 s", "25.6 hours"):
        assert figure in text, figure
    assert "38% of the original's 24 s" in text
    for word in ("lighter FunASR", "TensorRT", "smaller language model", "Flash Attention 2", "Fewer new tokens"):
        assert word in text, word
    assert "**Not measured.**" in text


def test_the_reports_spread_is_that_of_its_two_hits():
    assert predecessor.report()["spread"] == pytest.approx(0.0617, abs=1e-4)


def test_every_committed_measurement_says_how_it_was_made():
    names = ("suite", "full-size", "encode", "decode")
    paths = [path for path in (ROOT / "benchmarks").glob("*.json") if path.stem in names]
    assert len(paths) >= 3
    for path in paths:
        told = json.loads(path.read_text(encoding="utf-8"))["conditions"]
        assert re.fullmatch(r"[0-9a-f]{40}", told["commit"]), path.name
        assert told["command"].startswith("python -m stepaudio bench"), path.name
        assert told["cpu"], path.name


def test_the_projection_is_bytes_over_bandwidth():
    told = project(reference=6.0, sound=10.0, steps=10, share=0.5)
    row = told["rows"]["bfloat16"]
    # 32 layers of 95.9 million weights, two bytes each, and about 40 MB of keys and values.
    assert row["bytes_per_id"] == pytest.approx(2 * 32 * 95_944_704 + 17.6e6 + 35e6, rel=0.002)
    assert row["ceiling_ids_per_second"] == pytest.approx(864e9 / row["bytes_per_id"])
    assert row["decode"] == pytest.approx(10 * 125 / 3 / (0.5 * row["ceiling_ids_per_second"]))
    assert row["miss"] - row["hit"] == pytest.approx(told["encoder"])
    assert row["hit"] == pytest.approx(row["decode"] + told["prefill"] + told["flow"] + told["hift"])
    # FACTS: 151 GFLOP a second of mel for ten steps, and attention; at a quarter of 183 TFLOP/s.
    assert told["flow"] == pytest.approx((151e9 * 16 + 655_360 * 800**2) / (0.25 * 183e12), rel=0.01)
    assert told["rows"]["W4A16"]["decode"] < row["decode"] / 3
    assert told["decode_share_measured"]
    assert not project()["decode_share_measured"]


def test_a_part_must_stand_in_the_text_once():
    text = "a\n<!-- generated: x -->\nold\n<!-- end -->\nb\n"
    assert documents.filled(text, {"x": r"new \1" + "\n"}) == text.replace("old", r"new \1")
    with pytest.raises(InvalidInput, match="0 generated parts named y"):
        documents.filled(text, {"y": ""})
    with pytest.raises(InvalidInput, match="2 generated parts named x"):
        documents.filled(text * 2, {"x": ""})


def test_without_a_suite_there_is_nothing_to_renew(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "README.md").write_text("")
    with pytest.raises(InvalidInput, match=r"suite\.json"):
        documents.renew(tmp_path)


def test_tables_and_seconds():
    assert table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---:|", "| 1 | 2 |", ""]
    assert [seconds(value) for value in (0.12345, 12.345, 1234.5)] == ["0.123 s", "12.3 s", "1234 s"]
