"""download.py, snapshot.py, hub.py and transfer.py against a server that speaks both hubs' protocols and misbehaves."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from stepaudio import download as command
from stepaudio import hub as hubs
from stepaudio import snapshot
from stepaudio.download import LOCK, ProgressLine, add_arguments, download, run
from stepaudio.errors import Busy, Cancelled, InvalidInput, WeightsError
from stepaudio.hub import RemoteFile, confirm_known, wanted
from stepaudio.snapshot import INCOMING, Progress, readable
from stepaudio.transfer import GAIN, Checksum, HubError, Network
from tests.conftest import ROOT
from tests.hub_stand_in import LISTING, Fault, HubStandIn, serve

EDITX, TOKENIZER = "acme/Editor", "acme/Tokenizer"
REPOS = {"Step-Audio-EditX": EDITX, "Step-Audio-Tokenizer": TOKENIZER}
BIG = "model-00001.safetensors"
BIG_CONTENT = hashlib.shake_256(b"weights").digest(300_000)
SOURCES = ["huggingface", "modelscope"]


def new_hub() -> HubStandIn:
    return HubStandIn(
        {
            EDITX: {
                "config.json": b'{"model_type": "step1"}',
                BIG: BIG_CONTENT,
                "README.md": b"# not needed",
                "modeling_step1.py": b"raise SystemExit",
                "LICENSE": b"Apache",
                "CosyVoice-300M-25Hz/flow.pt": b"flow" * 1000,
            },
            TOKENIZER: {"folder with space/am.mvn": b"<Nnet>", "linguistic_tokenizer.npy": b"centroids"},
        },
        in_lfs=frozenset({BIG, "CosyVoice-300M-25Hz/flow.pt"}),
    )


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with serve(new_hub()) as hub:
        yield hub


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "models" / "step-audio-editx"


def network(hub: HubStandIn, **options: object) -> Network:
    """Return a network on which the stand-in is both hubs, and patience is short."""
    endpoints = dict.fromkeys(SOURCES, hub.url)
    return Network(**{"endpoints": endpoints, "attempts": 3, "first_wait": 0.01, "read_seconds": 5.0, **options})


def fetch(hub: HubStandIn, target: Path, source: str = "huggingface", **options: object) -> snapshot.Report:
    return download(target, source=source, network=network(hub), repos=REPOS, **options)


def big_part(target: Path) -> Path:
    """Return the path of the big file's part, whose name holds the first digits of its checksum."""
    digest = hashlib.sha256(BIG_CONTENT).hexdigest()
    return target / INCOMING / "Step-Audio-EditX" / f"{BIG}.{digest[:16]}.part"


def assert_complete(target: Path) -> None:
    assert (target / "Step-Audio-EditX" / BIG).read_bytes() == BIG_CONTENT
    assert (target / "Step-Audio-EditX/CosyVoice-300M-25Hz/flow.pt").read_bytes() == b"flow" * 1000
    assert (target / "Step-Audio-Tokenizer/folder with space/am.mvn").read_bytes() == b"<Nnet>"
    assert not (target / INCOMING).exists()
    assert not list(target.rglob("*.part"))


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


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_what_to_do(hub, target, source, status):
    hub.always[LISTING] = Fault(status=status)
    with pytest.raises(WeightsError, match=rf"refuses the file list .*HTTP {status}.*access token.*hub_token"):
        fetch(hub, target, source)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_there_is_said_once(hub, target, source):
    hub.always[LISTING] = Fault(status=404)
    with pytest.raises(WeightsError, match=r"does not have the file list of acme/Editor \(HTTP 404\)"):
        fetch(hub, target, source)
    assert len(hub.requests) == 1


def test_an_unexpected_status_is_named(hub, target):
    hub.always[LISTING] = Fault(status=418)
    with pytest.raises(WeightsError, match="answers HTTP 418 for the file list"):
        fetch(hub, target)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("body", [b"<html>", b"[1]", b'{"Data": null}', b'[{"type": "file", "path": "a", "oid": 7}]'])
def test_a_listing_that_cannot_be_read_is_refused(hub, target, source, body):
    hub.always[LISTING] = Fault(body=body)
    with pytest.raises(WeightsError, match="file list of acme/Editor that cannot be read"):
        fetch(hub, target, source)


@pytest.mark.parametrize("source", SOURCES)
def test_a_repository_without_weights_is_refused(hub, target, source):
    hub.repos[TOKENIZER] = {"README.md": b""}
    with pytest.raises(WeightsError, match="lists no weights in acme/Tokenizer"):
        fetch(hub, target, source)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "path", ["../escaped", "a/../../escaped", "/etc/escaped", "C:/escaped", "a\\..\\escaped", "a//b", "a\nb", "./a", ""]
)
def test_a_path_that_leaves_the_folder_is_refused(hub, target, source, path):
    hub.listed_as["config.json"] = path
    with pytest.raises(WeightsError, match="not a plain one; refused"):
        fetch(hub, target, source)
    assert not list(target.rglob("escaped"))
    assert {request.path for request in hub.requests} == {LISTING}


def test_a_listing_of_several_pages_is_read_to_its_end(hub, target):
    hub.page_size = 2
    fetch(hub, target)
    assert_complete(target)
    assert len(hub.asked_for(LISTING)) == 4 + 2


def test_the_token_does_not_follow_a_listing_to_another_host(hub, target):
    with serve(new_hub()) as elsewhere:
        hub.page_size = elsewhere.page_size = 4
        hub.next_pages_at = elsewhere.url
        download(target, source="huggingface", network=network(hub, token="secret"), repos=REPOS)
        assert_complete(target)
        assert {request.authorization for request in elsewhere.requests} == {None}


def test_a_file_listed_without_a_checksum_is_judged_by_its_size(hub, target):
    hub.without_hash.add(BIG)
    fetch(hub, target, "modelscope")
    assert fetch(hub, target, "modelscope").fetched == ()
    (target / "Step-Audio-EditX" / BIG).write_bytes(b"short")
    assert fetch(hub, target, "modelscope").fetched == (f"Step-Audio-EditX/{BIG}",)
    assert_complete(target)


def test_a_redirect_to_another_host_is_followed_without_the_token(hub, target):
    with serve(new_hub()) as content_network:
        address = f"{content_network.url}/{EDITX}/resolve/main/{BIG}"
        hub.always[BIG] = Fault(redirect=address)
        content_network.faults[BIG] = [Fault(cut_after=100_000)]
        download(target, source="huggingface", network=network(hub, token="secret"), repos=REPOS)
        assert_complete(target)
        assert {request.authorization for request in hub.requests} == {"Bearer secret"}
        assert [r.range for r in content_network.asked_for(BIG)] == [None, "bytes=100000-"]
        assert {request.authorization for request in content_network.requests} == {None}


def test_an_endless_redirect_is_an_error(hub, target):
    hub.always[BIG] = Fault(redirect=f"{hub.url}/{EDITX}/resolve/main/{BIG}")
    with pytest.raises(WeightsError, match="no usable answer"):
        fetch(hub, target)


def test_the_token_of_one_hub_is_not_sent_to_the_other(hub, target):
    download(target, source="modelscope", network=network(hub, token="secret"), repos=REPOS)
    assert {request.authorization for request in hub.requests} == {None}


def test_the_token_is_not_shown_in_a_representation():
    assert "secret" not in repr(Network(token="secret"))
    assert "secret" not in repr(hubs.choose_hubs("huggingface", Network(token="secret")))


def test_proxies_of_the_environment_are_used(hub, target, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", hub.url)
    there = {"huggingface": "http://hub.invalid"}
    download(target, source="huggingface", network=network(hub, endpoints=there), repos=REPOS)
    assert_complete(target)


@pytest.mark.parametrize(
    ("name", "value"), [("HTTP_PROXY", "gopher://proxy:1"), ("SSL_CERT_FILE", "/nowhere/certificates.pem")]
)
def test_unusable_settings_of_the_environment_are_named(hub, target, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(InvalidInput, match="proxy or certificate settings"):
        fetch(hub, target)


def unreachable() -> str:
    """Return an address where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_no_network_is_one_sentence(hub, target):
    there = {"huggingface": unreachable()}
    with pytest.raises(WeightsError, match=r"Could not get the file list of acme/Editor from 127.0.0.1 \(.+\); check"):
        download(target, source="huggingface", network=network(hub, endpoints=there), repos=REPOS)


def test_auto_prefers_hugging_face(hub, target):
    assert fetch(hub, target, "auto").source == "huggingface"


def test_auto_turns_to_modelscope_when_hugging_face_cannot_be_reached(hub, target):
    there = {"huggingface": unreachable(), "modelscope": hub.url}
    report = download(target, source="auto", network=network(hub, endpoints=there), repos=REPOS)
    assert report.source == "modelscope"
    assert_complete(target)


def test_auto_goes_on_with_modelscope_in_the_middle_of_a_file(hub, target):
    with serve(new_hub()) as other:
        hub.faults[BIG] = [Fault(cut_after=100_000)]
        hub.always[BIG] = Fault(status=503)
        there = {"huggingface": hub.url, "modelscope": other.url}
        report = download(target, source="auto", network=network(hub, endpoints=there), repos=REPOS)
        assert report.source == "modelscope"
        assert_complete(target)
        assert [request.range for request in other.asked_for(BIG)] == ["bytes=100000-"]


def test_auto_names_both_hubs_when_neither_can(hub, target):
    there = {"huggingface": unreachable(), "modelscope": hub.url}
    hub.always[LISTING] = Fault(status=404)
    with pytest.raises(WeightsError, match=r"Could not get .* does not have"):
        download(target, source="auto", network=network(hub, endpoints=there), repos=REPOS)


def test_auto_does_not_turn_away_from_a_damaged_file(hub, target):
    with serve(new_hub()) as other:
        hub.wrong_hash.add(BIG)
        there = {"huggingface": hub.url, "modelscope": other.url}
        with pytest.raises(WeightsError, match="came damaged"):
            download(target, source="auto", network=network(hub, endpoints=there), repos=REPOS)
        assert other.requests == []


@pytest.mark.parametrize("endpoint", ["ftp://mirror", "mirror.example.com", "https://"])
def test_an_endpoint_that_is_no_address_is_refused(target, endpoint):
    with pytest.raises(InvalidInput, match="endpoint"):
        download(target, source="huggingface", network=Network(endpoints={"huggingface": endpoint}))


def test_an_unknown_source_is_refused(target):
    with pytest.raises(InvalidInput, match="is one of auto, huggingface, modelscope"):
        download(target, source="gopher")  # type: ignore[arg-type]


def test_the_hubs_own_addresses_are_the_default():
    first, second = hubs.choose_hubs("auto", Network())
    assert (first.name, first.endpoint) == ("huggingface", "https://huggingface.co")
    assert (second.name, second.endpoint) == ("modelscope", "https://modelscope.cn")


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


# What this program itself knows of the files.


def remote(size: int, sha256: str, path: str = "tokenizer.model") -> RemoteFile:
    return RemoteFile("stepfun-ai/Step-Audio-EditX", path, size, (Checksum("sha256", sha256),), "https://x")


def test_known_files_must_be_listed_as_they_are_known():
    size, digest = hubs.KNOWN["stepfun-ai/Step-Audio-EditX"]["tokenizer.model"]
    assert confirm_known(remote(size, digest), hubs.KNOWN) == remote(size, digest)
    for other in (remote(size + 1, digest), remote(size, "0" * 64)):
        with pytest.raises(WeightsError, match=r"tokenizer.model .* this version of stepaudio was made for"):
            confirm_known(other, hubs.KNOWN)


def test_unknown_files_pass_as_listed():
    assert confirm_known(remote(5, "0" * 64, "config.json"), hubs.KNOWN) == remote(5, "0" * 64, "config.json")


def test_a_known_file_outside_lfs_gets_both_checksums():
    size, digest = hubs.KNOWN["stepfun-ai/Step-Audio-EditX"]["tokenizer.model"]
    listed = RemoteFile(
        "stepfun-ai/Step-Audio-EditX", "tokenizer.model", size, (Checksum("git-sha1", "a" * 40),), "https://x"
    )
    assert confirm_known(listed, hubs.KNOWN).checksums == (Checksum("sha256", digest), Checksum("git-sha1", "a" * 40))


def test_what_is_known_agrees_with_the_files(small_files):
    for files in hubs.KNOWN.values():
        for path, (size, digest) in files.items():
            if (small_files / path).exists():
                content = (small_files / path).read_bytes()
                assert (len(content), hashlib.sha256(content).hexdigest()) == (size, digest)
    assert (small_files / "tokenizer.model").exists()
    assert (small_files / "linguistic_tokenizer.npy").exists()


def test_a_hub_that_lists_another_known_file_is_refused_before_anything_is_fetched(hub, target, monkeypatch):
    monkeypatch.setattr(snapshot, "KNOWN", {EDITX: {BIG: (300_000, "0" * 64)}})
    with pytest.raises(WeightsError, match="this version of stepaudio was made for"):
        fetch(hub, target)
    assert {request.path for request in hub.requests} == {LISTING}


def test_the_default_repositories_fill_the_two_folders_of_a_weights_folder():
    assert dict(command.REPOS) == {
        "Step-Audio-EditX": "stepfun-ai/Step-Audio-EditX",
        "Step-Audio-Tokenizer": "stepfun-ai/Step-Audio-Tokenizer",
    }


# The command.


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def acme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command fetch the repositories of the stand-in."""
    monkeypatch.setitem(download.__kwdefaults__, "repos", REPOS)


@pytest.mark.usefixtures("acme")
def test_the_command_fetches_and_says_so(hub, tmp_path):
    stream = io.StringIO()
    args = arguments("--source", "modelscope", "--endpoint", hub.url + "/")
    assert run(args, tmp_path, stream=stream) == 0
    assert_complete(tmp_path / "step-audio-editx")
    assert "The weights are complete in" in stream.getvalue()
    assert "6 files fetched from modelscope, 0 were there already" in stream.getvalue()
    assert "100.0 %" in stream.getvalue()


@pytest.mark.usefixtures("acme")
def test_the_command_passes_the_token_on(hub, tmp_path):
    args = arguments("--source", "huggingface", "--endpoint", hub.url)
    assert run(args, tmp_path, token="secret", stream=io.StringIO()) == 0
    assert {request.authorization for request in hub.requests} == {"Bearer secret"}


@pytest.mark.usefixtures("acme")
def test_an_interruption_says_that_the_next_run_goes_on(hub, tmp_path, monkeypatch):
    def interrupt(line: ProgressLine, progress: Progress) -> None:
        if progress.file.endswith(BIG) and progress.done > 100_000:
            raise KeyboardInterrupt

    monkeypatch.setattr(ProgressLine, "__call__", interrupt)
    stream = io.StringIO()
    args = arguments("--source", "huggingface", "--endpoint", hub.url)
    assert run(args, tmp_path, stream=stream) == 130
    assert "run the same command again and it goes on" in stream.getvalue()
    assert big_part(tmp_path / "step-audio-editx").stat().st_size > 0
    monkeypatch.undo()


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".."])
def test_the_folder_name_must_be_plain(tmp_path, name):
    with pytest.raises(InvalidInput, match="one plain name"):
        run(arguments("--name", name), tmp_path, stream=io.StringIO())


def test_an_endpoint_needs_a_source(tmp_path):
    with pytest.raises(InvalidInput, match="needs a --source"):
        run(arguments("--endpoint", "https://mirror"), tmp_path, stream=io.StringIO())


@pytest.mark.usefixtures("acme")
def test_progress_goes_to_stderr(hub, tmp_path, capsys):
    run(arguments("--source", "huggingface", "--endpoint", hub.url), tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "100.0 %" in captured.err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_line_rewritten_with_speed_and_time_left():
    stream, now = Terminal(), [0.0]
    line = ProgressLine(stream, clock=lambda: now[0])
    for second, done in ((0.0, 1_000_000_000), (0.1, 1_500_000_000), (10.0, 2_000_000_000)):
        now[0] = second
        line(Progress("a.pt", 0, 9, done, 5_000_000_000))
    line.end()
    assert stream.getvalue() == (
        " 20.0 %  1.00 GB of 5.00 GB  a.pt\x1b[K\r 40.0 %  2.00 GB of 5.00 GB  100 MB/s  0:00:30 left  a.pt\x1b[K\r\n"
    )


def test_a_log_gets_a_line_for_each_file_and_now_and_then():
    stream, now = io.StringIO(), [0.0]
    line = ProgressLine(stream, clock=lambda: now[0])
    for second, file in ((0.0, "a"), (5.0, "a"), (16.0, "a"), (17.0, "b")):
        now[0] = second
        line(Progress(file, 0, 9, 10, 1000))
    line.end()
    assert [text[-1] for text in stream.getvalue().splitlines()] == ["a", "a", "b"]


@pytest.mark.parametrize(
    ("count", "text"), [(9_230_000_000, "9.23 GB"), (14_200_000, "14 MB"), (2_000, "2 kB"), (120, "120 bytes")]
)
def test_bytes_are_told_as_people_read_them(count, text):
    assert readable(count) == text


def test_a_hub_error_is_a_weights_error():
    assert issubclass(HubError, WeightsError)


def test_the_command_needs_no_heavy_library():
    """Fetching weights must work quickly and where torch does not even import."""
    script = "import sys, stepaudio.download; print(sorted({'torch', 'gradio', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
