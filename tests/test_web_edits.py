"""The tab "Edit" where things go wrong or other ways than planned: nothing is lost, and the tab works on."""

from __future__ import annotations

import pytest

from tests.page_kit import shown_value
from tests.test_web_controls import engine, page, recorder, service, start, studio, synthesis  # noqa: F401 - fixtures


@pytest.mark.parametrize("button", ["clear-chain", "edit-this"])
def test_the_history_may_be_cleared_or_begun_anew_while_an_edit_runs(studio, recorder, engine, monkeypatch, button):  # noqa: F811
    studio.press("generate")
    studio.press("edit-this")
    studio.fill(edit_seed=5, edit_new_seed=False).press("apply")

    def meanwhile(reference, task, **others):
        studio.press(button)
        return synthesis("late words", 7)

    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline, "edit", meanwhile)
        late = studio.press("apply")
    assert "was cleared meanwhile" in shown_value(late["edit-error"])
    assert len(late["chain"]["choices"]) == (0 if button == "clear-chain" else 1)
    compared = studio.press("compare-this")
    assert [name for name, _ in compared["compare-first"]["choices"] if "edit" in name] == ["3: edit, step 1"]
    again = studio.press("apply")  # from the original of the new chain, or from what the fields hold
    assert shown_value(again["edit-error"]) == ""
    assert [number for _, number in again["chain"]["choices"]] == [0, 1]
