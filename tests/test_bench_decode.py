"""The measurement of decoding runs as a whole, and what it reports is what it measured."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

import pytest
import torch

from stepaudio.bench import decode


def parse(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    decode.add_arguments(parser)
    return parser.parse_args(flags)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The results of one measurement of a small network, with what it wrote."""
    file = tmp_path_factory.mktemp("bench") / "decode.json"
    written: list[str] = []
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.stdout, "write", written.append)
        status = decode.run(
            parse("--sizes", "small", "--threads", "1", "2", "--ids", "20", "--runs", "3", "--json", str(file))
        )
    assert torch.get_num_threads() == threads
    return {"status": status, "report": "".join(written), "results": json.loads(file.read_text())}


def test_the_step_and_plain_decoding_agree_and_every_run_is_reported(measured: dict) -> None:
    assert measured["status"] == 0
    rows = measured["results"]["rows"]
    assert [(row["size"], row["threads"]) for row in rows] == [("small", 1), ("small", 2)]
    for row in rows:
        assert row["greedy_equal"] is True
        for name, values in row["all"].items():
            assert len(values) == 3
            assert min(values) > 0
            assert row[name] == statistics.median(values)


def test_a_kept_beginning_is_read_faster(measured: dict) -> None:
    for row in measured["results"]["rows"]:
        assert row["read_kept"] < row["read"]


def test_the_report_states_its_conditions_and_every_row(measured: dict) -> None:
    report, told = measured["report"], measured["results"]["conditions"]
    assert told["torch"] == torch.__version__
    assert "small: width 32" in report
    assert "median of 3 interleaved runs" in report
    assert report.count("| small |") == 2
    assert report.count("| yes |") == 2


def test_the_flags_cost_no_import_of_torch() -> None:
    code = "import sys; import stepaudio.bench.decode; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"
