"""The whole measurement runs, what it reports is what it measured, and a command renews all documents."""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import warnings

import pytest
import torch
from PIL import Image

from stepaudio.bench import documents, suite
from stepaudio.bench.markdown import both
from stepaudio.bench.predecessor import day
from stepaudio.bench.stopwatch import Stopwatch, spread
from stepaudio.cli import build_parser
from stepaudio.errors import InvalidInput
from stepaudio.settings import flags_from, load_settings
from tests.conftest import ROOT

FLAGS = ["bench", "--quick", "--size", "tiny", "--threads", "1", "--device", "cpu"]
ROWS = ("original", "onnx", "first_write", "hit_2", "hit_3", "ours_first", "ours_hit_2", "ours_hit_3")


def parse(*flags: str) -> argparse.Namespace:
    return build_parser().parse_args(["bench", *flags])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A checkout's documents after one measurement: what was written to standard output, and the JSON."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "benchmarks").mkdir()
    (root / "docs").mkdir()
    (root / "README.md").write_text((ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    (root / "benchmarks" / "suite.json").write_text((ROOT / "benchmarks" / "suite.json").read_text())
    written: list[str] = []
    parsed = build_parser().parse_args([*FLAGS, "--write"])
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(sys.stdout, "write", written.append)
        status = parsed.run(parsed, load_settings(flags_from(parsed)))
    assert torch.get_num_threads() == threads
    results = json.loads((root / "benchmarks" / "quick.json").read_text(encoding="utf-8"))
    return {"status": status, "report": "".join(written), "results": results, "root": root}


def test_every_row_is_there_with_the_median_of_its_runs(measured):
    assert measured["status"] == 0
    rows = measured["results"]["clones"]["rows"]
    assert tuple(rows) == (*ROWS, "same")
    for name in ROWS:
        row = rows[name]
        assert len(row["all_seconds"]) == len(row["all_processor"]) == 2
        assert row["seconds"] == statistics.median(row["all_seconds"])
        assert row["processor"] == statistics.median(row["all_processor"])
        assert min(row["all_seconds"]) > 0
        assert sum(row["stages"].values()) == pytest.approx(row["seconds"], rel=0.3)
    assert measured["results"]["clones"]["sound_seconds"] == pytest.approx(0.6)


def test_the_cache_shows_in_the_stages_and_nowhere_else(measured):
    rows = measured["results"]["clones"]["rows"]
    for name in ("hit_2", "hit_3", "ours_hit_2", "ours_hit_3"):
        assert rows[name]["stages"]["FunASR"] < rows["original"]["stages"]["FunASR"] / 3
    assert rows["first_write"]["stages"]["FunASR"] > 3 * rows["hit_2"]["stages"]["FunASR"]


def test_the_spread_is_that_of_at_least_five_hits(measured):
    told = measured["results"]["clones"]["spread"]
    assert told["hits"] == len(told["all_seconds"]) >= 5
    assert told["seconds"] == pytest.approx(
        (max(told["all_seconds"]) - min(told["all_seconds"])) / min(told["all_seconds"])
    )


def test_every_switch_has_both_sides_and_the_same_result(measured):
    switches = {row["name"]: row for row in measured["results"]["switches"]}
    assert set(switches) == {"windows", "beside", "cache", "step", "kernels", "kept", "ahead"}
    for name, row in switches.items():
        assert row["factor"] == pytest.approx(row["without"]["seconds"] / row["with"]["seconds"])
        assert len(row["without"]["all_seconds"]) == len(row["with"]["all_seconds"]) == 2, name
    for name in ("windows", "step", "kernels", "kept"):
        assert switches[name]["agreeing"] == 1.0
    assert switches["ahead"]["agreeing"] < 1e-3
    # In processor time, which a busy machine hardly changes.
    for name in ("windows", "cache", "step", "kernels"):
        assert switches[name]["with"]["processor"] < switches[name]["without"]["processor"], name


def test_decoding_waits_for_nothing_and_allocates_nothing(measured):
    decoding = measured["results"]["decoding"]
    assert decoding["allocations_per_id"] == decoding["synchronisations_per_id"] == 0
    assert decoding["ceiling"] == pytest.approx(decoding["copy_bandwidth"] / sum(decoding["bytes_per_id"].values()))
    assert decoding["share_of_ceiling"] == pytest.approx(decoding["ids_per_second"] / decoding["ceiling"])
    assert decoding["together"]["processor"] < decoding["one_by_one"]["processor"]
    # tiny: two layers of width 64, 128 units, 8 heads of 8 in 2 groups.
    layer = 2 * 64 * 64 + 2 * 16 * 64 + 3 * 128 * 64 + 2 * 64
    assert decoding["bytes_per_id"]["layers"] == 2 * layer * 4
    assert decoding["bytes_per_id"]["head"] == (2 * 1024 + 3 * 4096) // 5 * 64 * 4


def test_every_variant_that_can_run_is_measured(measured):
    rows = measured["results"]["variants"]
    installed = importlib.util.find_spec("bitsandbytes") is not None
    assert [row["name"] for row in rows] == ["base", *(["bnb-int8", "bnb-nf4"] if installed else [])]
    for row in rows:
        assert row["ids"] == 25
        assert f"{row['name']} {both(row)}" in measured["report"]
    products = rows[0]["products"]["seconds"]
    assert {row["name"] for row in rows} | {"awq"} == set(products)
    for name, seconds in products.items():
        assert seconds > 0
        assert f"{name} {seconds * 1e3:.2f} ms" in measured["report"]


def test_the_watch_for_waits_sees_one():
    from stepaudio.bench.ceiling import _Waits

    with _Waits() as waits:
        torch.ones(3).add_(1)
        assert waits.count == 0
        torch.ones(1).item()
    assert waits.count == 1


def test_the_notice_of_cudas_watch_is_no_wait(monkeypatch):
    from stepaudio.bench.ceiling import CALLED, _cuda_waits

    notice = "Synchronization debug mode is a prototype feature and does not yet detect all synchronizing operations"
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: warnings.warn(notice, stacklevel=2))
    with _cuda_waits(True) as told:
        warnings.warn(f"{CALLED} (Triggered internally at ...)", stacklevel=2)
        warnings.warn("something else", stacklevel=2)
    assert told == [f"{CALLED} (Triggered internally at ...)"]


def test_the_scenarios_are_the_arithmetic_of_the_medians(measured):
    rows, told = measured["results"]["clones"]["rows"], measured["results"]["scenarios"]
    first, hit = rows["ours_first"]["seconds"], rows["ours_hit_2"]["seconds"]
    assert told["one_voice"]["ours"]["seconds"] == pytest.approx(first + 99 * hit)
    assert told["one_voice"]["baseline"]["seconds"] == pytest.approx(100 * rows["original"]["seconds"])
    assert told["a_day"]["ours"]["hours"] == pytest.approx(10_000 * (0.3 * first + 0.7 * hit) / 3600)
    voices = told["voices"]
    assert voices["baseline"]["hits"] == [False] * 5
    assert voices["baseline_cached"]["hits"] == voices["ours"]["hits"] == [False, False, False, True, True]
    assert voices["ours"]["total"] == pytest.approx(sum(voices["ours"]["seconds"]))


def test_first_sound_comes_before_the_last_and_requests_wait_for_each_other(measured):
    stream = measured["results"]["stream"]
    assert 0 < stream["first_sound"] <= stream["stream"]["seconds"]
    assert stream["stream"]["rtf"] == pytest.approx(stream["stream"]["seconds"] / stream["sound_seconds"])
    queue = measured["results"]["concurrency"]
    assert [(row["clients"], row["requests"]) for row in queue] == [(1, 2), (2, 4), (4, 8)]
    assert queue[2]["longest_seconds"] > queue[0]["median_seconds"]


def test_the_conditions_are_stated(measured):
    told = measured["results"]["conditions"]
    assert told["command"] == "python -m stepaudio bench --size tiny --quick --device cpu --threads 1"
    assert told["torch"] == torch.__version__
    assert told["threads"] == 1
    assert told["weights"] == "random weights of size tiny"
    assert len(told["load_before"]) == len(told["load_after"]) == 3
    assert len(told["commit"]) == 40
    for word in (told["commit"][:10], told["cpu"], told["date"], "random weights of size tiny", "2 interleaved runs"):
        assert word in measured["report"]


def test_all_documents_are_written(measured):
    root, report = measured["root"], measured["report"]
    assert (root / "benchmarks" / "quick.md").read_text(encoding="utf-8") == report
    with Image.open(root / "benchmarks" / "quick.png") as image:
        assert image.size[0] == 1000
        assert len(image.getcolors(1 << 20) or []) > 6
    for path, text in documents.renewed(root).items():
        assert path.read_text(encoding="utf-8") == text
    # A quick measurement is no figure: the documents stay those of suite.json.
    assert (root / "docs" / "ANSWER.md").read_text(encoding="utf-8") != report


def test_writing_is_refused_outside_a_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsed = parse("--write")
    with pytest.raises(InvalidInput, match=r"README\.md"):
        parsed.run(parsed, load_settings(flags_from(parsed)))


@pytest.mark.parametrize(
    "flags",
    [
        ["--runs", "0"],
        ["--reference-seconds", "0.1"],
        ["--sound-seconds", "31"],
        ["--layers", "33"],
        ["--lengths", "1", "31"],
    ],
)
def test_what_cannot_be_measured_is_refused(flags):
    with pytest.raises(InvalidInput):
        suite.plan_of(parse(*flags), on_gpu=False)


def test_a_measurement_is_written_part_by_part_and_goes_on_from_what_is_there(tmp_path, monkeypatch):
    asked: list[str] = []
    monkeypatch.setattr(suite, "PARTS", ("hit", "decoding"))

    def parts(*_):
        def part(name):
            asked.append(name)
            if name == "decoding" and len(asked) < 3:
                raise KeyboardInterrupt
            return {"of": name}

        return {name: ("", lambda name=name: part(name)) for name in suite.PARTS}

    monkeypatch.setattr(suite, "_parts", parts)
    monkeypatch.setattr(suite, "assembled", lambda parts, **_: {"all": parts})
    flags = [*FLAGS, "--to", str(tmp_path)]

    def measure(*more: str):
        parsed = build_parser().parse_args([*flags, *more])
        return suite.measure(parsed, load_settings(flags_from(parsed)))

    with pytest.raises(KeyboardInterrupt):
        measure()
    record = tmp_path / "quick.parts.json"
    assert json.loads(record.read_text())["parts"] == {"hit": {"of": "hit"}}
    assert measure("--resume", str(record), "--only", "hit") is None
    results = measure("--resume", str(record))
    assert asked == ["hit", "decoding", "decoding"]
    assert results["all"] == {"hit": {"of": "hit"}, "decoding": {"of": "decoding"}}
    assert len(results["conditions"]["earlier"]) == 1
    with pytest.raises(InvalidInput, match="plan"):
        measure("--resume", str(record), "--runs", "3")


def test_parts_without_a_place_for_them_are_refused():
    parsed = parse("--only", "hit")
    with pytest.raises(InvalidInput, match="--to"):
        parsed.run(parsed, load_settings(flags_from(parsed)))


def test_the_full_size_is_reduced_on_a_cpu_alone():
    assert suite.plan_of(parse("--full-size"), on_gpu=False).layers == 2
    on_gpu = suite.plan_of(parse("--full-size"), on_gpu=True)
    assert (on_gpu.layers, on_gpu.sound_seconds, on_gpu.flow_steps, on_gpu.small) == (32, 10.0, 10, False)
    assert suite.plan_of(parse("--full-size", "--layers", "4", "--runs", "1"), on_gpu=False).layers == 4
    assert suite.plan_of(parse(), on_gpu=False) == suite.USUAL


def test_the_single_measurements_are_still_there():
    from stepaudio.bench import decode

    parsed = build_parser().parse_args(["bench", "decode", "--ids", "3"])
    assert (parsed.ids, parsed.runs) == (3, 5)
    assert parsed.run is not suite.run
    assert decode.SIZES["mini"]["hidden"] == 192


def test_the_stopwatch_takes_medians_and_leaves_warm_ups_out():
    watch = Stopwatch()
    assert watch.run("work", lambda: 5, keep=False) == 5
    for seconds in (3.0, 1.0, 2.0):
        watch.note("work", seconds, seconds / 2)
    assert watch.result("work")["seconds"] == 2.0
    assert watch.result("work")["all_processor"] == [1.5, 0.5, 1.0]
    assert spread([8.168, 8.672]) == pytest.approx(0.0617, abs=1e-4)


def test_a_day_of_the_reports_own_figures():
    told = day(12.0, 8.0)
    assert told["mean"] == pytest.approx(9.2)
    assert told["hours"] == pytest.approx(25.56, abs=0.01)
    assert told["machine"] == pytest.approx(1.065, abs=0.001)


def test_the_flags_cost_no_import_of_torch():
    code = "import sys; import stepaudio.bench.suite; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_the_command_says_what_was_measured():
    parsed = parse("--full-size", "--lengths", "1", "2.5", "--threads", "2", "--write")
    assert suite.command_of(parsed) == "python -m stepaudio bench --full-size --lengths 1.0 2.5 --threads 2"
    named = parse("--weights", "mini", "--runs", "7")
    assert suite.command_of(named) == "python -m stepaudio bench --runs 7 --weights mini"


@pytest.mark.proof
def test_the_full_size_runs_on_a_cpu(tmp_path):
    """The real networks but for 31 layers of the language model; needs about 10 GB of memory and some minutes."""
    flags = ["--full-size", "--layers", "1", "--device", "cpu", "--to", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "stepaudio", "bench", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "full-size.json").read_text(encoding="utf-8"))
    model = results["conditions"]["language_model"]
    assert (model["width"], model["heads"], model["groups"], model["layers"]) == (3072, 48, 4, 1)
    assert model["parameters"] == 2 * 74752 * 3072 + 95_944_704 + 2 * 3072 + 3072
    # Every weight of the layer is read for an id, in float32.
    assert results["decoding"]["bytes_per_id"]["layers"] == 4 * (95_944_704 + 2 * 3072)
    assert results["clones"]["sound_seconds"] == pytest.approx(0.6)
