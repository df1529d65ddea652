"""The measurement of encoding runs as a whole, and what it reports is what it measured."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import pytest
import torch

from stepaudio.bench import encode


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    encode.add_arguments(parser)
    return parser.parse_args(flags)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The results of one measurement of a small encoder, with what it wrote."""
    file = tmp_path_factory.mktemp("bench") / "encode.json"
    written: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "write", written.append)
        status = encode.run(parse("--small", "--seconds", "0.5", "1.5", "--runs", "3", "--json", str(file)))
    return {"status": status, "report": "".join(written), "results": json.loads(file.read_text())}


def test_both_ways_of_encoding_agree_on_every_code(measured: dict) -> None:
    assert measured["status"] == 0
    windows = measured["results"]["windows"]
    assert [row["seconds"] for row in windows] == [0.5, 1.5]
    assert [row["frames"] for row in windows] == [8, 25]
    for row in windows:
        assert row["codes_equal"] == 1.0
        assert row["largest_difference"] < 1e-4
        assert len(row["all_chunk_loop"]) == len(row["all_window_parallel"]) == 3
        assert row["ratio"] == pytest.approx(row["chunk_loop"] / row["window_parallel"])
        assert sorted(row["all_chunk_loop"])[1] == row["chunk_loop"]


def test_a_hit_is_faster_than_its_miss(measured: dict) -> None:
    for row in measured["results"]["cache"]:
        assert 0 < row["hit"]["total"] < row["miss"]["total"]
        assert row["hit"]["hash"] + row["hit"]["lookup"] <= row["hit"]["total"]


def test_the_report_states_its_conditions_and_every_row(measured: dict) -> None:
    report, told = measured["report"], measured["results"]["conditions"]
    assert told["torch"] == torch.__version__
    assert f"{told['cores']} cores, {told['threads']} threads" in report
    assert "float32" in report
    assert "median of 3 interleaved runs" in report
    assert "tiny stand-ins" in report
    assert report.count("| 0.5 s |") == report.count("| 1.5 s |") == 2


def test_measuring_leaves_the_number_of_threads_as_it_was(measured: dict) -> None:
    before = torch.get_num_threads()
    encode.run(parse("--small", "--seconds", "0.3", "--runs", "1", "--threads", str(before + 1)))
    assert torch.get_num_threads() == before


def test_the_default_is_the_real_size_and_three_runs() -> None:
    arguments = parse()
    assert (arguments.seconds, arguments.runs, arguments.small) == ([5.0, 20.0], 3, False)
    assert encode.REAL_SIZE == {"size": 512, "heads": 4, "linear_units": 2048, "blocks": 50}


def test_the_flags_cost_no_import_of_torch() -> None:
    code = "import sys; import stepaudio.bench.encode; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
