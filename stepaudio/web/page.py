"""The Gradio page. Layout and wiring only: what the buttons do is in handlers.py, every word in strings.py."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from stepaudio.cache import CacheStats
from stepaudio.service import Service
from stepaudio.types import Synthesis
from stepaudio.web.handlers import CloneForm, run_clone
from stepaudio.web.sessions import SessionJobs
from stepaudio.web.strings import LANGUAGES, Language, language_of, say
from stepaudio.web.tables import banners, cache_report, run_report, weights_line
from stepaudio.web.uploads import is_upload

# Uploads and results are looked for every ten minutes and deleted after an hour.
FILE_CHECK_SECONDS, FILE_LIFE_SECONDS = 600, 3600
BANNER_REFRESH_SECONDS = 3.0
CSS = """
#error { border-left: 4px solid #c0392b; padding: 0.5em 1em; background: #c0392b1a; }
#banner { border-left: 4px solid #b8860b; padding: 0.5em 1em; background: #b8860b1a; }
.stepaudio-run { overflow-x: auto; }
.stepaudio-run table { width: 100%; border-collapse: collapse; font-size: 0.9em; margin-top: 0.75em; }
.stepaudio-run th, .stepaudio-run td { border: 0 !important; padding: 0.15em 0.5em; white-space: nowrap; }
.stepaudio-run th, .stepaudio-run td { text-align: right; }
.stepaudio-run th:first-child, .stepaudio-run th:last-child, .stepaudio-run td:last-child { text-align: left; }
.stepaudio-run td:last-child { white-space: normal; }
.stepaudio-run tbody th { font-weight: normal; text-align: left; }
.stepaudio-run .depth-0 th, .stepaudio-run tfoot { font-weight: bold; }
.stepaudio-run .depth-1 th { padding-left: 1.5em; }
.stepaudio-run .depth-2 th { padding-left: 2.75em; opacity: 0.8; }
.stepaudio-run .share { position: relative; min-width: 6em; }
.stepaudio-run .share span { position: absolute; left: 0; top: 15%; bottom: 15%; background: #f9731640; }
.stepaudio-run tfoot tr { border-top: 1px solid currentColor; }
.stepaudio-player progress { width: 100%; }
footer { display: none !important; }
"""


PLAYER = '<div class="stepaudio-player" hidden><progress max="1"></progress><span></span></div>'  # see player.js


class Page:
    """The clone page over one Service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._jobs = SessionJobs()

    def build(self) -> gr.Blocks:
        """Return the page, ready to be mounted."""
        with gr.Blocks(
            title="stepaudio", analytics_enabled=False, delete_cache=(FILE_CHECK_SECONDS, FILE_LIFE_SECONDS)
        ) as blocks:
            self.last = gr.State(None, time_to_live=FILE_LIFE_SECONDS)  # this tab's last Synthesis
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    self.heading = gr.Markdown(elem_id="heading")
                with gr.Column(scale=1, min_width=240):
                    names = [(name, code) for code, name in LANGUAGES.items()]
                    self.language = gr.Radio(names, value="en", elem_id="language")
            self.banner = gr.Markdown(elem_id="banner", visible=False)
            with gr.Row():
                with gr.Column():
                    self.reference = gr.Audio(
                        sources=["upload", "microphone"], type="filepath", elem_id="reference", buttons=[]
                    )
                    self.transcript = gr.Textbox(lines=2, elem_id="transcript")
                    self.text = gr.Textbox(lines=4, elem_id="text")
                    self._build_advanced()
                    self.live = gr.Checkbox(value=True, interactive=True, elem_id="live")  # read by player.js
                    self.ticket = gr.Textbox("", visible=False)  # filled in by player.js
                    with gr.Row():
                        self.generate = gr.Button(variant="primary", scale=4, elem_id="generate")
                        self.stop = gr.Button(variant="stop", scale=1, min_width=100, elem_id="stop")
                with gr.Column():
                    self.error = gr.Markdown(elem_id="error", visible=False)
                    gr.HTML(PLAYER, elem_id="player")
                    self.result = gr.Audio(interactive=False, elem_id="result", buttons=["download"])
                    self.run = gr.HTML(elem_id="run")
                    self._build_cache()
            self.weights = gr.Markdown(elem_id="weights")
            self._wire(blocks)
        blocks.queue(default_concurrency_limit=None)
        return blocks

    def _build_advanced(self) -> None:
        settings = self._service.settings
        with gr.Accordion(open=False, elem_id="advanced") as self.advanced:
            with gr.Row():
                self.new_seed = gr.Checkbox(value=True, elem_id="new-seed")
                self.seed = gr.Number(value=None, precision=0, elem_id="seed")
            with gr.Row():
                self.temperature = gr.Slider(0, 2, settings.temperature, step=0.05, elem_id="temperature")
                self.top_k = gr.Slider(0, 200, settings.top_k, step=1, elem_id="top-k")
                self.top_p = gr.Slider(0.05, 1, settings.top_p, step=0.05, elem_id="top-p")
            with gr.Row():
                most = settings.max_output_seconds
                self.max_seconds = gr.Slider(1, most, most, step=1, elem_id="max-seconds")
                self.flow_steps = gr.Slider(1, 50, settings.flow_steps, step=1, elem_id="flow-steps")

    def _build_cache(self) -> None:
        with gr.Accordion(open=True, elem_id="cache") as self.cache_box:
            self.cache = gr.Markdown(elem_id="cache-stats")
            self.clear = gr.Button(size="sm", elem_id="clear")
            with gr.Group(visible=False, elem_id="clear-confirm") as self.confirm:
                self.clear_sure = gr.Markdown(elem_id="clear-sure", container=True)
                with gr.Row():
                    self.clear_yes = gr.Button(size="sm", variant="stop", elem_id="clear-yes")
                    self.clear_no = gr.Button(size="sm", elem_id="clear-no")

    def _wire(self, blocks: gr.Blocks) -> None:
        labels = [
            *(self.heading, self.language, self.reference, self.transcript, self.text, self.advanced, self.new_seed),
            *(
                self.seed,
                self.temperature,
                self.top_k,
                self.top_p,
                self.max_seconds,
                self.flow_steps,
                self.generate,
                self.stop,
            ),
            *(self.live, self.result, self.cache_box, self.clear, self.clear_sure, self.clear_yes, self.clear_no),
        ]
        status = [self.banner, self.cache, self.weights]
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

        def on_load(request: gr.Request) -> list[Any]:
            language = language_of(request.headers.get("accept-language", ""))
            return [*self._labels(language), *self._status(language)]

        blocks.load(on_load, None, [*labels, *status], **private)
        self.language.input(
            lambda language, last: [*self._labels(language), *self._status(language), self._report(last, language)],
            [self.language, self.last],
            [*labels, *status, self.run],
            **private,
        )
        # The banner follows the loading of the models and the health of the cache without a reload.
        timer = gr.Timer(BANNER_REFRESH_SECONDS)
        timer.tick(self._status, self.language, status, **private)

        fields = [
            *(self.reference, self.transcript, self.text, self.new_seed, self.seed),
            *(self.temperature, self.top_k, self.top_p, self.max_seconds, self.flow_steps),
        ]
        asked = [*fields, self.ticket, self.language]
        self.generate.click(
            self._generate,
            asked,
            [self.result, self.run, self.error, self.seed, self.last, *status],
            api_visibility="private",
            show_progress_on=self.result,
            concurrency_limit=None,
            js=f"(...values) => stepaudioPlayer.begin(values.slice(0, {len(asked)}))",
        )
        self.stop.click(self._stop, None, None, **private)
        blocks.unload(self._stop)  # a reload or a closed tab: nobody waits for the job any more
        show, hide = gr.update(visible=True), gr.update(visible=False)
        self.clear.click(lambda: show, None, self.confirm, **private)
        self.clear_no.click(lambda: hide, None, self.confirm, **private)
        self.clear_yes.click(self._clear, self.language, [self.confirm, *status], **private)

    def _generate(self, request: gr.Request, *values: Any, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008 - Gradio's way
        path, *fields, language = values
        view = run_clone(
            self._service,
            CloneForm(path if path and is_upload(path) else None, *fields),
            language,
            lambda fraction, words: progress(fraction, desc=words),
            self._jobs,
            str(request.session_hash),
        )
        sound = None
        if view.wav is not None:
            sound = save_bytes_to_cache(view.wav, f"stepaudio-{view.request_id}.wav", self.result.GRADIO_CACHE)
        return [
            sound,
            self._report(view.synthesis, language),
            gr.update(value=view.error, visible=bool(view.error)),
            view.synthesis.seed if view.synthesis is not None else gr.skip(),
            view.synthesis,
            *self._status(language),
        ]

    def _stop(self, request: gr.Request) -> None:
        self._jobs.stop(str(request.session_hash))

    def _report(self, synthesis: Synthesis | None, language: Language) -> str:
        return run_report(synthesis, language) if synthesis is not None else ""

    def _clear(self, language: Language) -> list[Any]:
        engine = self._service.engine
        if engine is not None:
            gr.Info(say(language, "cleared", count=engine.pipeline.cache.clear()))
        return [gr.update(visible=False), *self._status(language)]

    def _stats(self) -> CacheStats | None:
        engine = self._service.engine
        return engine.pipeline.cache.stats() if engine is not None else None

    def _status(self, language: Language) -> list[Any]:
        """Return the values of banner, cache line and weights line."""
        stats = self._stats()
        banner = banners(self._service, stats, language)
        return [
            gr.update(value=banner, visible=bool(banner)),
            cache_report(stats, language),
            weights_line(self._service, language),
        ]

    def _labels(self, language: Language) -> list[Any]:
        """Return the words of every component, in the order of ``labels``."""

        def word(key: str) -> str:
            return say(language, key)

        heading = f"# {word('title')}\n{word('intro')} {word('notice')}"
        return [
            gr.update(value=heading),
            gr.update(label=word("language"), value=language),
            gr.update(label=word("reference")),
            gr.update(label=word("transcript"), placeholder=word("transcript_hint")),
            gr.update(label=word("text"), placeholder=word("text_hint")),
            gr.update(label=word("advanced")),
            *(
                gr.update(label=word(key))
                for key in ("new_seed", "seed", "temperature", "top_k", "top_p", "max_seconds", "flow_steps")
            ),
            *(gr.update(value=word(key)) for key in ("generate", "stop")),
            gr.update(label=word("live")),
            gr.update(label=word("result")),
            gr.update(label=word("cache")),
            *(gr.update(value=word(key)) for key in ("clear", "clear_sure", "clear_yes", "clear_no")),
        ]
