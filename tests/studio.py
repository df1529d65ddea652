"""What the browser tests and the pictures of the page do with it, in the words of a user."""

from __future__ import annotations

from typing import Any

TABS = ("clone", "edit", "compare", "voices", "performance", "model")
WAIT = 180_000


def open_tab(page: Any, name: str) -> None:
    """Go to a tab, in whatever language, and wait until it shows."""
    page.locator("#tabs button[role=tab]").nth(TABS.index(name)).click()


def switch_language(page: Any, language: str) -> None:
    """Switch the page to English or Chinese and wait until it speaks it."""
    page.locator("#language").get_by_text({"en": "English", "zh": "中文"}[language]).click()
    word = {"en": "Performance", "zh": "性能"}[language]
    page.locator("#tabs button[role=tab]").get_by_text(word).wait_for(timeout=WAIT)


def choose(page: Any, group: str, number: int) -> None:
    """Choose one of the entries of a group of radio buttons, counted from 0."""
    page.locator(f"{group} input[type=radio]").nth(number).click()


def apply_edit(page: Any, task: str, option: str | None, steps: int) -> None:
    """Apply a task to the chosen step, and wait until the history has so many steps."""
    page.locator("#task").get_by_text(task, exact=False).click()
    if option is not None:
        field = page.locator("#option input")
        field.click()
        page.get_by_role("option", name=option, exact=True).click(timeout=WAIT)
    page.locator("#apply").click()
    page.wait_for_function(
        "count => document.querySelectorAll('#chain input[type=radio]').length === count", arg=steps, timeout=WAIT
    )
