"""The tab "Clone": a request that gives no sound takes nothing away from the one before it."""

from __future__ import annotations

import pytest

from stepaudio.errors import Cancelled
from tests.page_kit import shown_value
from tests.test_web_controls import engine, page, recorder, service, start, studio  # noqa: F401 - fixtures

KEPT = ("result", "download", "run", "takes-made", "seed", "transcript", "edit-this", "compare-this")


@pytest.mark.parametrize("stopped", [False, True], ids=["refused", "stopped"])
def test_the_result_before_stays_where_a_clone_gives_no_sound(studio, recorder, engine, monkeypatch, stopped):  # noqa: F811
    def stop(*args, **named):
        raise Cancelled("The synthesis was stopped.")

    studio.fill(takes=3, seed=10, new_seed=False).press("generate")
    studio.fill(takes_made=2).press("takes-made", "input")
    before = {name: studio.value(name) for name in KEPT}
    with monkeypatch.context() as patch:
        if stopped:
            patch.setattr(engine.pipeline, "takes", stop)
        failed = studio.fill(temperature=0.7 if stopped else 99.0).press("generate")
    assert ("stopped" if stopped else "temperature is 99") in shown_value(failed["error"])
    assert {name: studio.value(name) for name in KEPT} == before
    assert all("interactive" not in failed[name] for name in ("download", "edit-this", "compare-this"))
    # The takes are still there, also for the other tabs, and the next clone takes the error away.
    assert studio.fill(takes_made=1).press("takes-made", "input")["seed"] == 11
    assert [number for _, number in studio.press("edit-this")["chain"]["choices"]] == [0]
    assert shown_value(studio.fill(temperature=0.7, takes=1).press("generate")["error"]) == ""
