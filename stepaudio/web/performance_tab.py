"""The tab "Performance": where the time went, what the last runs took, what the cache saved, what runs where."""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from stepaudio.cache import CacheStats
from stepaudio.web.desk import PRIVATE, Desk
from stepaudio.web.sessions import Session
from stepaudio.web.strings import Language, say
from stepaudio.web.tables import cache_report, parts_table, run_report, runs_table

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
_FILE_LINK = re.compile(r"!?\[([^\]]*)\]\((?!https?:)[^)]*\)")
_HEADING = re.compile(r"^(#+ )", re.MULTILINE)
ANSWERS: dict[Language, str] = {"en": "ANSWER.md", "zh": "ANSWER.zh.md"}


class PerformanceTab:
    """Built inside its gr.Tab, wired once all tabs are there."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        on = desk.words.on
        with gr.Row():
            with gr.Column():
                on(gr.Markdown(), value="heading_run")
                self.stages = on(gr.HTML(elem_id="stages"), value=no_run)
                on(gr.Markdown(), value="heading_runs")
                self.runs = gr.HTML(elem_id="runs")
                on(gr.Markdown(), value="heading_log")
                self.log = gr.HTML(elem_id="log")
            with gr.Column():
                on(gr.Markdown(), value="heading_cache")
                self.cache = gr.Markdown(elem_id="cache-stats")
                self.clear = on(gr.Button(size="sm", elem_id="clear"), value="clear")
                with gr.Group(visible=False, elem_id="clear-confirm") as self.confirm:
                    on(gr.Markdown(elem_id="clear-sure", container=True), value="clear_sure")
                    with gr.Row():
                        self.clear_yes = on(
                            gr.Button(size="sm", variant="stop", elem_id="clear-yes"), value="clear_yes"
                        )
                        self.clear_no = on(gr.Button(size="sm", elem_id="clear-no"), value="clear_no")
                on(gr.Markdown(), value="heading_parts")
                self.parts = gr.HTML(elem_id="parts")
        with on(gr.Accordion(open=False, visible=answer("en") != "", elem_id="answer"), label="answer"):
            on(gr.Markdown(elem_classes="stepaudio-answer"), value=answer)

    @property
    def live(self) -> dict[str, gr.components.Component]:
        """The components that follow what happens, by their names in ``values``."""
        return {"cache": self.cache, "runs": self.runs, "log": self.log, "parts": self.parts, "stages": self.stages}

    def values(self, session: Session, stats: CacheStats | None, language: Language) -> dict[str, Any]:
        """Return the values of the components of ``live``."""
        service = self._desk.service
        return {
            "cache": cache_report(stats, language),
            "runs": runs_table(service.runs.summaries(), language),
            "log": log_box(session, language),
            "parts": parts_table(service, language),
            "stages": run_report(session.last, language) if session.last is not None else no_run(language),
        }

    def wire(self) -> None:
        show, hide = gr.update(visible=True), gr.update(visible=False)
        self.clear.click(lambda: show, None, self.confirm, **PRIVATE)
        self.clear_no.click(lambda: hide, None, self.confirm, **PRIVATE)
        self.clear_yes.click(self._clear, self._desk.language, [self.confirm, self.cache], **PRIVATE)

    def _clear(self, language: Language, request: gr.Request) -> list[Any]:
        self._desk.session(request).forget_sent(self.cache._id)
        engine = self._desk.service.engine
        if engine is None:
            return [gr.update(visible=False), gr.skip()]
        gr.Info(say(language, "cleared", count=engine.pipeline.cache.clear()))
        return [gr.update(visible=False), cache_report(engine.pipeline.cache.stats(), language)]


def answer(language: Language) -> str:
    """Return what the repository's docs say to the report on the predecessor; "" where they are not there.

    Its links lead to files of the repository, which the page does not serve: their words stay. Its headings stand
    below the page's own.
    """
    path = DOCS / ANSWERS[language]
    if not path.is_file():
        return ""
    words = _FILE_LINK.sub(r"\1", path.read_text(encoding="utf-8"))
    return _HEADING.sub(r"#\1", words)


def no_run(language: Language) -> str:
    return f'<p class="stepaudio-empty">{escape(say(language, "no_run"))}</p>'


def log_box(session: Session, language: Language) -> str:
    """Return the log of a tab's own requests as HTML, newest lines last."""
    if not session.log:
        return f'<p class="stepaudio-empty">{escape(say(language, "no_log"))}</p>'
    lines = escape("\n".join(session.log))
    label = escape(say(language, "heading_log").removeprefix("## "))
    return f'<div class="stepaudio-log" tabindex="0" role="region" aria-label="{label}"><pre>{lines}</pre></div>'
