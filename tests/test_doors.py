"""Who may come in, and whether there is room: the login, the folder of uploads, and the two before the page."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from stepaudio import doors
from stepaudio.doors import Login, Room
from stepaudio.errors import InvalidInput, StepAudioError
from stepaudio.settings import Settings
from stepaudio.tempfolder import FRESH_SECONDS, TempFolder

MEGABYTE = 2**20


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"{request.url.path} {len(await request.body())}")


APP = Starlette(routes=[Route("/{rest:path}", echo, methods=["GET", "POST"])])


@pytest.fixture
def guarded(monkeypatch) -> TestClient:
    monkeypatch.setattr(doors, "WRONG_SECONDS", 0.01)
    login = Login.parse("ada:p:ä")
    assert login is not None
    return TestClient(Login(APP, login, root_path="/voice"))


# The login.


def basic(login: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(login.encode()).decode()}


def test_without_a_password_nothing_but_the_health_is_told(guarded):
    refused = guarded.get("/")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    assert guarded.post("/stream", content=b"x").status_code == 401
    for path in ("/health/live", "/health/ready", "/voice/health/ready"):
        assert guarded.get(path).status_code == 200
    assert guarded.get("/health/live/../../x").status_code == 401


def test_the_right_password_opens_and_a_colon_may_stand_in_it(guarded):
    assert guarded.get("/", headers=basic("ada:p:ä")).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        "Basic YWRhOg==",  # ada:
        "Basic OnA6",  # :p:
        "Basic ####",
        "Basic",
        "Basic " + "A" * 10_000,
        "Bearer ada:p:ä",
    ],
)
def test_anything_else_does_not(guarded, sent):
    assert guarded.get("/", headers={"authorization": sent.encode()}).status_code == 401


def test_a_wrong_password_waits_for_its_answer(guarded, monkeypatch):
    monkeypatch.setattr(doors, "WRONG_SECONDS", 0.3)
    start = time.perf_counter()
    assert guarded.get("/", headers=basic("ada:no")).status_code == 401
    assert time.perf_counter() - start >= 0.3


@pytest.mark.parametrize("login", ["ada", "ada:", ":p", ":"])
def test_half_a_login_is_refused_at_the_start(login):
    with pytest.raises(InvalidInput, match="a name and a password"):
        Login.parse(login)


def test_no_login_asks_nobody():
    assert Login.parse("") is None


def test_the_password_stands_in_no_description_of_the_settings():
    assert "secret" not in repr(Settings(login="ada:secret"))


def test_a_key_of_the_api_is_left_to_its_own_check_where_there_are_keys(guarded):
    headers = {"authorization": "Bearer a-key"}
    assert guarded.get("/v1/models", headers=headers).status_code == 401
    keyed = TestClient(Login(APP, (b"ada", b"p"), keyed=True))
    assert keyed.get("/v1/models", headers=headers).status_code == 200
    assert keyed.get("/v1/models").status_code == 401
    assert keyed.get("/", headers=headers).status_code == 401


def test_the_beginning_of_a_word_is_no_root_path():
    keyed = TestClient(Login(APP, (b"ada", b"p"), root_path="/v", keyed=True))
    headers = {"authorization": "Bearer a-key"}
    assert keyed.get("/v1/models", headers=headers).status_code == 200
    assert keyed.get("/v/v1/models", headers=headers).status_code == 200
    assert keyed.get("/vv1/models", headers=headers).status_code == 401
    assert keyed.get("/v/health/live").status_code == 200
    assert keyed.get("/v1/health/live").status_code == 401


# The folder.


def old(path: Path, size: int, age: float = FRESH_SECONDS + 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_folder_is_private_used_by_all_and_gone_at_the_end(tmp_path):
    before = tempfile.gettempdir()
    with TempFolder.opened(str(tmp_path), 7, MEGABYTE) as folder:
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        with tempfile.NamedTemporaryFile() as file:
            assert folder.path in Path(file.name).parents
        from gradio.utils import get_upload_folder

        if "GRADIO_TEMP_DIR" not in os.environ:
            assert folder.path in Path(get_upload_folder()).parents
    assert not folder.path.exists()
    assert tempfile.gettempdir() == before


def test_what_a_killed_server_left_is_removed_and_nothing_else(tmp_path):
    with TempFolder.opened(str(tmp_path), 7, MEGABYTE) as folder:
        pass
    left = old(folder.path / "gradio" / "upload.wav", 10)
    own = old(tmp_path / "mine.txt", 10)
    with TempFolder.opened(str(tmp_path), 7, MEGABYTE):
        assert not left.exists()
        assert own.exists()
    assert own.exists()


def test_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    victim = old(tmp_path / "elsewhere" / "file", 10)
    with TempFolder.opened(str(tmp_path), 7, MEGABYTE) as folder:
        pass
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StepAudioError, match="cannot be made"), TempFolder.opened(str(tmp_path), 7, MEGABYTE):
        pass
    assert victim.exists()


def test_two_servers_of_one_port_have_a_folder_each(tmp_path):
    with TempFolder.opened(str(tmp_path), 7, MEGABYTE) as first:
        upload = old(first.path / "upload.wav", 10)
        with TempFolder.opened(str(tmp_path), 7, MEGABYTE) as second:
            assert second.path != first.path
            assert stat.S_IMODE(second.path.stat().st_mode) == 0o700
        assert upload.exists()
        assert not second.path.exists()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_something_removed_is_made_again_before_a_body_is_read(tmp_path, caplog):
    with TempFolder.opened(str(tmp_path), 7, MEGABYTE) as folder:
        client = TestClient(Room(APP, folder))
        shutil.rmtree(folder.path)
        assert client.post("/stream", content=b"small").status_code == 200
        assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
        assert "was removed by something else" in caplog.text
        caplog.clear()
        client.post("/stream", content=b"small")
        assert caplog.text == ""


def test_a_full_disk_is_no_room_either(tmp_path, monkeypatch):
    result = old(tmp_path / "result", 40)
    folder = TempFolder(tmp_path, 1000)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20))
    assert not folder.make_room(61)
    assert result.exists()
    assert folder.make_room(50)
    assert not result.exists()


def test_the_oldest_files_make_room_and_fresh_ones_stay(tmp_path):
    folder = TempFolder(tmp_path, 100)
    first, second = old(tmp_path / "a" / "first", 40, 9000), old(tmp_path / "b" / "second", 40, 8000)
    fresh = old(tmp_path / "fresh", 10, 1)
    assert folder.make_room(10)
    assert first.exists()
    assert folder.make_room(45)
    assert not first.exists()
    assert second.exists()
    assert second.exists()
    assert folder.make_room(90)
    assert not second.exists()
    assert fresh.exists()


def test_nothing_is_removed_for_what_will_not_fit_anyway(tmp_path):
    folder = TempFolder(tmp_path, 100)
    result = old(tmp_path / "result", 40)
    assert not folder.make_room(101)
    old(tmp_path / "fresh", 10, 1)
    assert not folder.make_room(91)
    assert result.exists()


def test_a_body_without_room_is_turned_away_and_small_ones_are_not(tmp_path):
    client = TestClient(Room(APP, TempFolder(tmp_path, 3 * MEGABYTE)))
    assert client.post("/upload", content=bytes(2 * MEGABYTE)).text == f"/upload {2 * MEGABYTE}"
    old(tmp_path / "fresh", 2 * MEGABYTE, 1)
    refused = client.post("/upload", content=bytes(2 * MEGABYTE))
    assert refused.status_code == 507
    assert refused.headers["retry-after"] == "60"
    assert "no room for more uploads" in refused.text
    assert client.post("/upload", content=b"text=hello").status_code == 200
    assert client.get("/").status_code == 200


def test_no_room_is_made_for_a_body_that_nobody_reads(tmp_path):
    async def refuse(request: Request) -> PlainTextResponse:
        return PlainTextResponse("No.", 401)

    app = Starlette(routes=[Route("/{rest:path}", refuse, methods=["POST"])])
    client = TestClient(Room(app, TempFolder(tmp_path, 3 * MEGABYTE)))
    result = old(tmp_path / "result", 2 * MEGABYTE)
    assert client.post("/upload", content=bytes(2 * MEGABYTE)).status_code == 401
    assert result.exists()
