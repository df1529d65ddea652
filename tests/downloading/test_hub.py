"""The two hubs: listings, refusals, redirects, tokens, and what is known of the real files."""

from __future__ import annotations

import hashlib
import socket

import pytest

from stepaudio import download as command
from stepaudio import hub as hubs
from stepaudio import snapshot
from stepaudio.download import download
from stepaudio.errors import InvalidInput, WeightsError
from stepaudio.hub import RemoteFile, confirm_known
from stepaudio.transfer import Checksum, Network
from tests.downloading.hub_stand_in import LISTING, Fault, serve
from tests.downloading.kit import (
    BIG,
    EDITX,
    REPOS,
    SOURCES,
    TOKENIZER,
    assert_complete,
    fetch,
    network,
    new_hub,
)


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
