"""The HTTP application: alive at once, ready when warm, the page at the root."""

from __future__ import annotations

import threading

import pytest
from fastapi.testclient import TestClient

from stepaudio.api import build_app
from stepaudio.errors import WeightsError
from stepaudio.service import Service
from stepaudio.settings import Settings


@pytest.fixture
def gate():
    return threading.Event()


@pytest.fixture
def service(make_engine, gate, tmp_path):
    engine = make_engine()

    def load():
        gate.wait(30)
        return engine

    return Service(Settings(cache_dir=tmp_path / "cache"), load)


def test_alive_at_once_and_ready_only_once_warm(service, gate):
    service.start()
    with TestClient(build_app(service)) as client:
        assert client.get("/health/live").json() == {"status": "live"}
        early = client.get("/health/ready")
        assert (early.status_code, early.json()) == (503, {"status": "loading"})
        gate.set()
        assert service.wait_until_decided(60) == "ready"
        late = client.get("/health/ready")
        assert (late.status_code, late.json()) == (200, {"status": "ready"})


def test_a_failed_start_is_told_by_the_health_check():
    def fail():
        raise WeightsError("The file hift.pt in models is missing.")

    broken = Service(Settings(), fail)
    broken.start()
    broken.wait_until_decided(10)
    with TestClient(build_app(broken)) as client:
        answer = client.get("/health/ready")
    assert answer.status_code == 503
    assert answer.json() == {"status": "failed", "problem": "The file hift.pt in models is missing."}


def test_the_page_is_at_the_root_and_names_nothing_outside(service, gate):
    gate.set()
    service.start()
    with TestClient(build_app(service)) as client:
        page = client.get("/")
    assert page.status_code == 200
    assert "stepaudio" in page.text
    for host in ("fonts.googleapis.com", "fonts.gstatic.com"):
        assert host not in page.text
