"""Fetching, resuming, verifying, giving up: against a server that misbehaves."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from stepaudio import snapshot
from stepaudio.download import LOCK, download
from stepaudio.errors import Busy, Cancelled, WeightsError
from stepaudio.hub import wanted
from stepaudio.snapshot import INCOMING, Progress
from stepaudio.transfer import GAIN
from tests.downloading.hub_stand_in import LISTING, Fault
from tests.downloading.kit import (
    BIG,
    BIG_CONTENT,
    EDITX,
    REPOS,
    SOURCES,
    assert_complete,
    big_part,
    fetch,
    network,
)


@pytest.mark.parametrize("source", SOURCES)
def test_both_hubs_give_the_same_folder(hub, target, source):
    report = fetch(hub, target, source)
    assert_complete(target)
    assert report.source == source
    assert report.folder == target
    assert len(report.fetched) == 6
    assert report.kept == ()
    assert report.total_bytes == sum(p.stat().st_size for p in target.rglob("*") if p.is_file() and p.name[0] != ".")


@pytest.mark.parametrize("source", SOURCES)
def test_what_the_product_does_not_need_is_left_out(hub, target, source):
    fetch(hub, target, source)
    names = {str(p.relative_to(target)) for p in target.rglob("*") if p.is_file()}
    assert "Step-Audio-EditX/LICENSE" in names
    assert not {n for n in names if n.endswith((".py", ".md"))}
    assert hub.asked_for("README.md") == []


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("model-00001.safetensors", True),
        ("CosyVoice-300M-25Hz/cosyvoice.yaml", True),
        ("CosyVoice-300M-25Hz/speech_tokenizer_v1.onnx", False),
        ("speech_tokenizer_v1.onnx", True),
        ("dengcunqin/paraformer/seg_dict", True),
        ("dengcunqin/paraformer/README.md", False),
        ("LICENSE.md", True),
        (".gitattributes", False),
        ("assets/logo.PNG", False),
        ("configuration_step1.py", False),
    ],
)
def test_weights_configurations_and_licences_are_wanted(path, answer):
    assert wanted(path) is answer


def test_a_second_run_reads_and_fetches_nothing_again(hub, target, monkeypatch):
    fetch(hub, target)
    before = len(hub.requests)
    monkeypatch.setattr(snapshot, "matches", lambda *_: pytest.fail("a file was read again"))
    report = fetch(hub, target)
    assert report.fetched == ()
    assert len(report.kept) == 6
    assert {request.path for request in hub.requests[before:]} == {LISTING}


def test_files_put_there_by_hand_are_verified_and_kept(hub, target):
    fetch(hub, target)
    (target / snapshot.RECORD).unlink()
    assert fetch(hub, target).fetched == ()


def test_a_damaged_record_costs_only_a_new_verification(hub, target, caplog):
    fetch(hub, target)
    (target / snapshot.RECORD).write_text("[1, 2")
    assert fetch(hub, target).fetched == ()
    assert "verified anew" in caplog.text
    assert json.loads((target / snapshot.RECORD).read_text())


@pytest.mark.parametrize("content", [b"x" * len(BIG_CONTENT), b"short"])
def test_a_file_that_was_changed_is_fetched_again(hub, target, content):
    fetch(hub, target)
    (target / "Step-Audio-EditX" / BIG).write_bytes(content)
    assert fetch(hub, target).fetched == (f"Step-Audio-EditX/{BIG}",)
    assert_complete(target)


def test_a_new_version_on_the_hub_replaces_the_old_file_and_its_parts(hub, target):
    fetch(hub, target)
    stale = target / "Step-Audio-EditX" / f"{BIG}.0123456789abcdef.part"
    stale.write_bytes(b"an older version, never finished")
    hub.repos[EDITX][BIG] = b"new weights"
    assert fetch(hub, target).fetched == (f"Step-Audio-EditX/{BIG}",)
    assert (target / "Step-Audio-EditX" / BIG).read_bytes() == b"new weights"
    assert not stale.exists()


def test_a_cut_connection_is_continued_where_it_broke(hub, target):
    hub.faults[BIG] = [Fault(cut_after=100_000), Fault(cut_after=50_000)]
    fetch(hub, target)
    assert_complete(target)
    assert [request.range for request in hub.asked_for(BIG)] == [None, "bytes=100000-", "bytes=150000-"]


def test_an_end_without_a_length_is_noticed_and_continued(hub, target):
    hub.faults[BIG] = [Fault(cut_after=1000, no_length=True)]
    fetch(hub, target)
    assert_complete(target)
    assert [request.range for request in hub.asked_for(BIG)] == [None, "bytes=1000-"]


def test_a_server_without_ranges_is_read_from_the_start(hub, target):
    hub.faults[BIG] = [Fault(cut_after=100_000), Fault(ignore_range=True)]
    fetch(hub, target)
    assert_complete(target)
    assert len(hub.asked_for(BIG)) == 2


def test_another_range_than_was_asked_for_is_not_taken(hub, target):
    hub.faults[BIG] = [Fault(cut_after=100_000), Fault(wrong_range=True)]
    fetch(hub, target)
    assert_complete(target)
    assert [request.range for request in hub.asked_for(BIG)] == [None, "bytes=100000-", None]


def test_a_refused_range_begins_anew(hub, target):
    hub.faults[BIG] = [Fault(cut_after=100_000), Fault(status=416)]
    fetch(hub, target)
    assert_complete(target)
    assert [request.range for request in hub.asked_for(BIG)] == [None, "bytes=100000-", None]


def test_a_stalled_connection_is_given_up_and_continued(hub, target):
    hub.faults[BIG] = [Fault(cut_after=100_000, stall=True)]
    download(target, source="huggingface", network=network(hub, read_seconds=0.2), repos=REPOS)
    assert_complete(target)
    assert hub.asked_for(BIG)[1].range == "bytes=100000-"


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("path", [LISTING, BIG])
def test_a_passing_failure_is_tried_again(hub, target, status, path):
    hub.faults[path] = [Fault(status=status), Fault(status=status)]
    fetch(hub, target)
    assert_complete(target)


def test_the_pause_that_a_server_asks_for_is_kept(hub, target):
    hub.faults[LISTING] = [Fault(status=429, retry_after="1")]
    begin = time.monotonic()
    fetch(hub, target)
    assert 1.0 <= time.monotonic() - begin < 5.0


def test_a_lasting_failure_ends_after_the_attempts_and_keeps_what_there_is(hub, target):
    hub.always[BIG] = Fault(cut_after=0)
    hub.faults[BIG] = [Fault(cut_after=100_000)]
    with pytest.raises(WeightsError, match=r"Could not get the file model-00001.safetensors.*goes on where it stopped"):
        fetch(hub, target)
    assert len(hub.asked_for(BIG)) == 3
    assert big_part(target).stat().st_size == 100_000
    hub.always.clear()
    fetch(hub, target)
    assert_complete(target)
    assert hub.asked_for(BIG)[-1].range == "bytes=100000-"


def test_a_line_that_breaks_often_but_gains_is_never_given_up(hub, target):
    content = hashlib.shake_256(b"long").digest(6 * GAIN)
    hub.repos[EDITX][BIG] = content
    hub.faults[BIG] = [Fault(cut_after=GAIN)] * 5
    fetch(hub, target)
    assert (target / "Step-Audio-EditX" / BIG).read_bytes() == content


def test_no_half_finished_folder_is_seen_under_its_name(hub, target):
    hub.always["linguistic_tokenizer.npy"] = Fault(status=404)
    with pytest.raises(WeightsError):
        fetch(hub, target)
    assert (target / INCOMING / "Step-Audio-EditX" / BIG).exists()
    assert not (target / "Step-Audio-EditX").exists()
    hub.always.clear()
    report = fetch(hub, target)
    assert_complete(target)
    assert report.fetched == ("Step-Audio-Tokenizer/linguistic_tokenizer.npy",)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("path", [BIG, "config.json"])
def test_a_wrong_checksum_names_the_file_and_removes_it(hub, target, source, path):
    hub.wrong_hash.add(path)
    with pytest.raises(WeightsError, match=rf"The file {path} of acme/Editor came damaged .*run the download again"):
        fetch(hub, target, source)
    assert not list(target.rglob(f"{path}*"))
    assert len(hub.asked_for(path)) == 1


def test_a_damaged_part_is_fetched_once_more_from_its_first_byte(hub, target):
    part = big_part(target)
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(1000))
    fetch(hub, target)
    assert_complete(target)
    assert [request.range for request in hub.asked_for(BIG)] == ["bytes=1000-", None]


def test_a_part_that_is_already_whole_is_only_verified(hub, target):
    part = big_part(target)
    part.parent.mkdir(parents=True)
    part.write_bytes(BIG_CONTENT)
    fetch(hub, target)
    assert_complete(target)
    assert hub.asked_for(BIG) == []


def test_a_part_that_is_too_long_begins_anew(hub, target):
    part = big_part(target)
    part.parent.mkdir(parents=True)
    part.write_bytes(BIG_CONTENT + b"more")
    fetch(hub, target)
    assert_complete(target)


@pytest.mark.parametrize("no_length", [False, True])
def test_more_bytes_than_listed_are_refused(hub, target, no_length):
    hub.always[BIG] = Fault(extra=b"surplus", no_length=no_length)
    with pytest.raises(WeightsError, match="300000"):
        fetch(hub, target)
    assert not list(target.rglob(f"{BIG}*"))


def test_a_login_page_in_place_of_a_file_is_refused_at_once(hub, target):
    hub.always[BIG] = Fault(body=b"<html>please log in</html>")
    with pytest.raises(WeightsError, match=r"sends 26 bytes .* where 300000 are listed"):
        fetch(hub, target)
    assert len(hub.asked_for(BIG)) == 1


def test_an_empty_file_is_fetched_too(hub, target):
    hub.repos[EDITX]["empty.txt"] = b""
    fetch(hub, target)
    assert (target / "Step-Audio-EditX/empty.txt").read_bytes() == b""


def test_too_little_room_is_said_before_anything_is_fetched(hub, target, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=200_000))
    with pytest.raises(WeightsError, match=r"not enough room in .*: the download needs 304 kB more, and 200 kB"):
        fetch(hub, target)
    assert {request.path for request in hub.requests} == {LISTING}
    part = big_part(target)
    part.parent.mkdir(parents=True)
    part.write_bytes(BIG_CONTENT[:200_000])
    fetch(hub, target)  # what is there already need not fit a second time
    assert_complete(target)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_one_sentence(hub, target):
    part = big_part(target)
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(WeightsError, match=r"The disk of .* is full; make room and run the download again"):
        fetch(hub, target)


def test_a_folder_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WeightsError, match="cannot be written to"):
        fetch(hub, tmp_path / "file" / "models")


def test_a_second_download_into_the_same_folder_is_busy(hub, target):
    target.mkdir(parents=True)
    with FileLock(target / LOCK), pytest.raises(Busy, match="running already"):
        fetch(hub, target)
    fetch(hub, target)
    assert_complete(target)


def test_a_stop_ends_the_download_and_the_next_one_goes_on(hub, target):
    seen: list[Progress] = []

    def stop() -> bool:
        return any(p.file.endswith(BIG) and p.done > 100_000 for p in seen)

    with pytest.raises(Cancelled, match="goes on where it ended"):
        fetch(hub, target, progress=seen.append, should_stop=stop)
    kept = big_part(target).stat().st_size
    assert 0 < kept < len(BIG_CONTENT)
    fetch(hub, target)
    assert_complete(target)
    assert hub.asked_for(BIG)[-1].range == f"bytes={kept}-"


def test_a_stop_is_heard_while_waiting_for_the_next_attempt(hub, target):
    hub.always[LISTING] = Fault(status=503)
    begin = time.monotonic()
    with pytest.raises(Cancelled):
        download(
            target,
            source="huggingface",
            network=network(hub, first_wait=30.0),
            repos=REPOS,
            should_stop=lambda: bool(hub.requests) and time.monotonic() - begin > 0.1,
        )
    assert time.monotonic() - begin < 5


def test_progress_grows_to_the_whole(hub, target):
    seen: list[Progress] = []
    report = fetch(hub, target, progress=seen.append)
    overall = [p.overall_done for p in seen]
    assert overall == sorted(overall)
    assert overall[-1] == report.total_bytes == seen[-1].overall_total
    assert {p.file for p in seen} == set(report.fetched)
    assert max(p.done for p in seen if p.file.endswith(BIG)) == len(BIG_CONTENT)


def test_progress_counts_what_is_there_already(hub, target):
    fetch(hub, target)
    (target / "Step-Audio-EditX/config.json").unlink()
    seen: list[Progress] = []
    report = fetch(hub, target, progress=seen.append)
    assert [p.overall_done for p in seen] == [report.total_bytes]
