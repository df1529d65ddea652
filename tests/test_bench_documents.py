"""The answer to the report: up to date, the same figures in both languages, and the arithmetic of its projection."""

from __future__ import annotations

import copy
import json
import re
from string import Formatter

import pytest

from stepaudio.bench import documents, predecessor, readme
from stepaudio.bench.answer import answer
from stepaudio.bench.markdown import seconds, table
from stepaudio.bench.parts import PARTS, assembled, unfinished
from stepaudio.bench.projection import from_decoding, project
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


def figures(text: str) -> list[str]:
    return sorted(re.findall(r"\d+\.\d+", text))


def test_both_languages_tell_the_same_figures():
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
    names = ("suite", "full-size", "full-size.parts", "encode", "decode")
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


# A measurement at full size that is not finished.


def record(*parts: str, on_gpu: bool = True) -> dict:
    """Return what a run on a GPU would have written after these parts; the figures are those of the suite."""
    told = copy.deepcopy(RESULTS["conditions"])
    del told["load_after"]
    told |= {"name": "full-size", "command": "python -m stepaudio bench --full-size", "device": "A GPU"}
    told |= {"on_gpu": on_gpu, "weights": "random weights of size real"}
    measured = {**RESULTS, **RESULTS["encoder"], "voices": RESULTS["scenarios"]["voices"]}
    return {"conditions": told, "earlier": [], "parts": {name: measured[name] for name in parts}}


@pytest.mark.parametrize(
    "parts", [(), *((name,) for name in PARTS), *(PARTS[:count] for count in range(2, len(PARTS) + 1)), PARTS[1:]]
)
def test_whatever_parts_there_are_are_told_and_the_others_are_called_open(parts):
    full = unfinished(record(*parts))
    english, chinese = answer(RESULTS, "en", full), answer(RESULTS, "zh", full)
    assert figures(english) == figures(chinese)
    assert not re.search(r"\d\.\d{5}", english)
    assert english.count("\n|") == chinese.count("\n|")
    measured, missing = english.partition("## At full size")[2].split("## What is not measured here")
    told = re.search(r"Measured: ([^\n]*)\.\n", measured)[1]
    for name in PARTS:
        words = WORDS["en"][f"part_{name}"]
        assert (words in told) == (name in parts), name
        assert (words in missing) == (name not in parts and name != "scaling"), name
    shown = {
        "clones": "first write",
        "switches": "| Switch |",
        "decoding": "One sequence",
        "stream": "first sound after",
    }
    shown |= {"concurrency": "| At once |"}
    assert {name for name, words in shown.items() if words in measured} == set(parts) & set(shown)
    assert ("measured on the GPU below" in english) == ("decoding" in parts)
    assert "Nothing here ran on a GPU" not in english
    assert "--full-size --device cuda" in missing or set(PARTS) - set(parts) <= {"scaling"}
    paragraph = readme.blocks(RESULTS, full)["speed-gpu"]
    assert bool(paragraph) == ("decoding" in parts)
    assert ("is not measured on a GPU yet" in paragraph) == ("decoding" in parts and "clones" not in parts)


def test_all_parts_are_a_whole_measurement():
    whole = assembled(record(*PARTS)["parts"], small=False, on_gpu=False)
    assert whole == {**{name: RESULTS[name] for name in whole}, "projection": whole["projection"]}
    assert set(whole) == set(RESULTS) - {"conditions"}
    answer({"conditions": RESULTS["conditions"], **whole}, "en")


def test_parts_of_a_cpu_say_nothing_of_a_gpu():
    full = unfinished(record("decoding", on_gpu=False))
    text = answer(RESULTS, "en", full)
    assert "Nothing here ran on a GPU" in text
    assert "measured on the GPU" not in text
    assert readme.blocks(RESULTS, full)["speed-gpu"] == ""


def test_without_a_full_size_the_documents_are_those_of_the_suite():
    text = answer(RESULTS, "en")
    assert "## At full size" not in text
    assert "Nothing here ran on a GPU" in text
    assert "(assumed)" in text
    assert readme.blocks(RESULTS, None)["speed-gpu"] == ""


def test_parts_count_until_there_is_the_whole(tmp_path):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "suite.json").write_text(json.dumps(RESULTS))
    assert documents.measured(tmp_path) == (RESULTS, None)
    (folder / "full-size.parts.json").write_text(json.dumps(record("decoding")))
    _, full = documents.measured(tmp_path)
    assert full is not None
    assert full["measured"] == ["decoding"]
    (folder / "full-size.json").write_text(json.dumps(RESULTS))
    assert documents.measured(tmp_path) == (RESULTS, RESULTS)


def test_a_notice_that_was_counted_as_a_wait_is_said_to_be_none():
    """The bench that lists its waits does not count it; on a CPU there never was one."""
    told = record("decoding")
    words = "One of the waits counted in these"
    told["parts"]["decoding"] = {**told["parts"]["decoding"], "synchronisations_per_id": 1 / 15}
    told["parts"]["decoding"].pop("waits", None)
    assert words in answer(RESULTS, "en", unfinished(told))
    told["parts"]["decoding"]["waits"] = ["called a synchronizing CUDA operation"]
    assert words not in answer(RESULTS, "en", unfinished(told))
    assert words not in answer(RESULTS, "en", unfinished(record("decoding")))


def test_the_projection_takes_what_decoding_showed_on_a_gpu():
    assert from_decoding(None) == project()
    decoding = {"share_of_ceiling": 0.5, "batch": 16, "take": {"seconds": 1.0}, "takes": {"seconds": 2.0}}
    told, before = from_decoding(decoding), project(share=0.5)
    assert (told["decode_share"], told["takes_gain"]) == (0.5, 8.0)
    row, assumed = told["rows"]["bfloat16"], before["rows"]["bfloat16"]
    assert row["hit"] == assumed["hit"]
    assert row["sixteen_takes_a_sound"] - assumed["sixteen_takes_a_sound"] == pytest.approx(row["decode"] / 16)
    assert from_decoding({**decoding, "batch": 4}) == before


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
