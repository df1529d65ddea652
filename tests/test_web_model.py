"""The tab "Model": what a click shows there is true, and what follows is told."""

from __future__ import annotations

import threading

from stepaudio.errors import WeightsError
from stepaudio.web.fetching import WeightsFetcher
from tests.page_kit import Studio, build_page, shown_value
from tests.test_web_controls import engine, recorder, service, start  # noqa: F401 - fixtures


def refreshed(studio: Studio) -> str:
    """Return what the download's line shows after the refresh that comes every few seconds."""
    shown: dict[str, object] = {}
    (tick,) = [f for f in studio.blocks.fns.values() if any(event == "tick" for _, event in f.targets)]
    studio._run(tick, studio.session, shown)
    return str(shown_value(shown.get("fetch", studio.value("fetch"))))


def test_a_download_that_fails_is_told_again_where_it_fails_again(service):  # noqa: F811
    go = threading.Event()

    def fetch(target, **others):
        assert go.wait(10)
        raise WeightsError("There is no network.")

    fetcher = WeightsFetcher(service.settings, fetch)
    studio = Studio(build_page(service, fetcher=fetcher))
    for _ in range(2):
        go.clear()
        assert "GB" in studio.press("fetch-start")["fetch"]
        go.set()
        fetcher.wait(10)
        assert "There is no network." in refreshed(studio)
