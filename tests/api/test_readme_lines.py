"""The README's lines for programs, run as they stand there against a server; only the address is another one."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import zipfile

import pytest
import soundfile

from tests.api.kit import RECORDING, until
from tests.conftest import ROOT

ADDRESS = "http://127.0.0.1:7860"
SECTION = (ROOT / "README.md").read_text(encoding="utf-8").split("## Over HTTP")[1].split("\n## ")[0]


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", SECTION, re.DOTALL)
    assert ADDRESS in found
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("readme")
    (made / "my-recording.wav").write_bytes(RECORDING)
    return made


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_for_curl_do_what_the_readme_says(client, url, folder):
    lines = [line for line in block("sh").splitlines() if line]
    said = []
    for line in lines:
        assert line.startswith("curl --fail")
        done = subprocess.run(line.replace(ADDRESS, url), shell=True, cwd=folder, capture_output=True, timeout=120)
        assert done.returncode == 0, (line, done.stderr.decode())
        said.append(done.stdout)
    assert json.loads(said[0])["name"] == "Jane"
    for name in ("spoken.mp3", "happy.wav", "unsaved.wav"):
        samples, rate = soundfile.read(folder / name)
        assert rate == 24_000
        assert len(samples) > 0
    batch = json.loads(said[3])["id"]
    until(lambda: client.get(f"/v1/batch/{batch}").json()["status"] == "done", 60)
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"/v1/batch/{batch}/results").content))
    assert archive.namelist() == ["000001.wav", "000002.wav", "manifest.jsonl"]
    assert b"stepaudio_requests_total" in said[5]


def test_the_lines_for_openais_client_do_what_the_readme_says(client, url, folder, monkeypatch):
    if not client.get("/v1/voices").json()["data"]:  # what the first line for curl does
        form = {"name": "Jane", "transcript": "the words"}
        assert client.post("/v1/voices", data=form, files={"audio": ("ada.wav", RECORDING)}).status_code == 200
    monkeypatch.chdir(folder)
    (folder / "spoken.wav").unlink(missing_ok=True)
    exec(compile(block("python").replace(ADDRESS, url), "README.md", "exec"), {})
    samples, rate = soundfile.read(folder / "spoken.wav")
    assert rate == 24_000
    assert len(samples) > 0


def test_every_route_of_the_description_is_in_the_readme(client):
    for path in client.get("/openapi.json").json()["paths"]:
        assert path.replace("{voice_id}", "{id}").replace("{batch_id}", "{id}").replace("/{model}", "") in SECTION, path
