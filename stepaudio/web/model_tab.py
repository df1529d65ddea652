"""The tab "Model": which weights run and what they have learnt, how to get the real ones, what the defaults are."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from stepaudio.web.desk import PRIVATE, Desk
from stepaudio.web.fetching import WeightsFetcher
from stepaudio.web.strings import Language, say
from stepaudio.web.tables import defaults_table, tasks_table, variants_table, weights_table


class ModelTab:
    """Built inside its gr.Tab, wired once all tabs are there."""

    def __init__(self, desk: Desk, fetcher: WeightsFetcher) -> None:
        self._desk = desk
        self._fetcher = fetcher
        on = desk.words.on
        with gr.Row():
            with gr.Column():
                on(gr.Markdown(), value="heading_weights")
                self.weights = gr.HTML(elem_id="weights")
                on(gr.Markdown(), value="heading_tasks")
                self.tasks = gr.HTML(elem_id="tasks")
                on(gr.Markdown(), value="heading_variants")
                self.variants = gr.HTML(elem_id="variants")
            with gr.Column():
                on(gr.Markdown(), value="heading_get")
                on(gr.Markdown(elem_id="get-words"), value="get_words")
                self.progress = gr.HTML(elem_id="fetch")
                with gr.Row():
                    self.fetch = on(gr.Button(variant="primary", elem_id="fetch-start"), value="fetch")
                    self.stop = on(gr.Button(elem_id="fetch-stop"), value="fetch_stop")
                on(gr.Markdown(), value="heading_defaults")
                on(gr.HTML(elem_id="defaults"), value=lambda language: defaults_table(desk.service.settings, language))

    @property
    def live(self) -> dict[str, gr.components.Component]:
        """The components that follow what happens, by their names in ``values``."""
        return {"weights": self.weights, "tasks": self.tasks, "variants": self.variants, "fetch": self.progress}

    def values(self, language: Language) -> dict[str, Any]:
        """Return the values of the components of ``live``."""
        service = self._desk.service
        return {
            "weights": weights_table(service, language),
            "tasks": tasks_table(service, language),
            "variants": variants_table(service, language),
            "fetch": fetch_line(self._fetcher, language),
        }

    def wire(self) -> None:
        language = self._desk.language
        self.fetch.click(self._start, language, self.progress, **PRIVATE)
        self.stop.click(self._stop, language, self.progress, **PRIVATE)

    def _start(self, language: Language, request: gr.Request) -> str:
        self._desk.session(request).forget_sent(self.progress._id)
        self._fetcher.start()
        return fetch_line(self._fetcher, language)

    def _stop(self, language: Language, request: gr.Request) -> str:
        self._desk.session(request).forget_sent(self.progress._id)
        self._fetcher.stop()
        self._fetcher.wait(1.0)
        return fetch_line(self._fetcher, language)


def fetch_line(fetcher: WeightsFetcher, language: Language) -> str:
    """Return how the download stands, as HTML."""
    status = fetcher.status
    words = say(
        language,
        f"fetch_{status.state}",
        folder=fetcher.target,
        done=status.done / 2**30,
        total=status.total / 2**30,
        file=status.file or "…",
        problem=status.problem,
    )
    bar = ""
    if status.state in ("running", "stopped") and status.total:
        label = escape(say(language, "heading_get").removeprefix("## "))
        bar = f'<progress max="1" value="{status.done / status.total:.4f}" aria-label="{label}"></progress>'
    return f'<div class="stepaudio-fetch" role="status">{bar}<span>{escape(words)}</span></div>'
