"""The Gradio page: its head, its tabs, and what passes between them. Every word is in strings.py."""

from __future__ import annotations

from typing import Any

import gradio as gr

from stepaudio import tasks
from stepaudio.cache import CacheStats
from stepaudio.service import Service
from stepaudio.web.clone_tab import CloneTab
from stepaudio.web.compare_tab import CompareTab
from stepaudio.web.desk import PRIVATE, Desk, error_update, merged
from stepaudio.web.edit_tab import EditTab, option_choices
from stepaudio.web.fetching import WeightsFetcher
from stepaudio.web.model_tab import ModelTab
from stepaudio.web.performance_tab import PerformanceTab
from stepaudio.web.sessions import Session
from stepaudio.web.specialise import any_value
from stepaudio.web.strings import LANGUAGES, Language, language_of
from stepaudio.web.tables import banners
from stepaudio.web.voices_tab import VoicesTab

# Uploads and results are looked for every ten minutes and deleted after an hour.
FILE_CHECK_SECONDS, FILE_LIFE_SECONDS = 600, 3600
REFRESH_SECONDS = 3.0
CLONE, EDIT, COMPARE = "clone", "edit", "compare"


class Page:
    """The studio over one Service."""

    def __init__(self, service: Service, fetcher: WeightsFetcher | None = None) -> None:
        self._service = service
        self._desk = Desk(service)
        self._fetcher = fetcher or WeightsFetcher(service.settings)

    def build(self) -> gr.Blocks:
        """Return the page, ready to be mounted."""
        desk = self._desk
        on = desk.words.on
        with gr.Blocks(
            title="stepaudio", analytics_enabled=False, delete_cache=(FILE_CHECK_SECONDS, FILE_LIFE_SECONDS)
        ) as blocks:
            with gr.Row(elem_id="top"):
                with gr.Column(scale=4, min_width=260):
                    on(gr.Markdown(elem_id="heading"), value="heading")
                with gr.Column(scale=1, min_width=250, elem_id="switches"), gr.Row():
                    names = [(name, code) for code, name in LANGUAGES.items()]
                    desk.language = on(
                        any_value(gr.Radio(names, value="en", elem_id="language", container=False)), label="language"
                    )
                    self.dark = on(gr.Button(size="sm", elem_id="dark", min_width=60, scale=0), value="dark")
            self.banner = gr.HTML(elem_id="banner", visible=False)
            with gr.Tabs(selected=CLONE, elem_id="tabs", overflow_behavior="wrap") as self.tabs:
                with on(gr.Tab(id=CLONE), label="tab_clone"):
                    self.clone = CloneTab(desk)
                with on(gr.Tab(id=EDIT), label="tab_edit"):
                    self.edit = EditTab(desk)
                with on(gr.Tab(id=COMPARE), label="tab_compare") as compare_tab:
                    self.compare = CompareTab(desk)
                with on(gr.Tab(id="voices"), label="tab_voices") as voices_tab:
                    self.voices = VoicesTab(desk)
                with on(gr.Tab(id="performance"), label="tab_performance") as performance_tab:
                    self.performance = PerformanceTab(desk)
                with on(gr.Tab(id="model"), label="tab_model") as model_tab:
                    self.model = ModelTab(desk, self._fetcher)
            self._wire(blocks, compare_tab, voices_tab, [performance_tab, model_tab])
        blocks.queue(default_concurrency_limit=None)
        return blocks

    def _wire(self, blocks: gr.Blocks, compare_tab: gr.Tab, voices_tab: gr.Tab, live_tabs: list[gr.Tab]) -> None:
        desk, language = self._desk, self._desk.language
        for tab in (self.clone, self.edit, self.compare, self.voices, self.performance, self.model):
            tab.wire()
        remembered = gr.Textbox("", visible=False)  # filled in by studio.js
        blocks.load(
            self._load,
            remembered,
            [language, *self._everything],
            js="() => [stepaudioStudio.language()]",
            **PRIVATE,
        )
        language.input(
            self._translate,
            [
                *(language, self.edit.task, self.edit.out.format),
                *(self.compare.first, self.compare.second, self.voices.chosen),
            ],
            self._everything,
            **PRIVATE,
        ).then(None, language, None, js="(language) => stepaudioStudio.speak(language)")
        # What happens without anybody's doing on this page: loading, other users' runs, a download.
        gr.Timer(REFRESH_SECONDS).tick(self._status, language, self._live, **PRIVATE)
        for live in live_tabs:
            live.select(self._status, language, self._live, **PRIVATE)
        self.dark.click(None, None, None, js="() => stepaudioStudio.dark()")
        blocks.unload(desk.end)  # a reload or a closed tab: nobody waits for the job any more

        compare_tab.select(
            self._compare, [self.compare.first, self.compare.second, language], self.compare.outputs, **PRIVATE
        )
        voices_tab.select(self.voices.view, [self.voices.chosen, language], self.voices.outputs, **PRIVATE)
        # The tab last: going to it shows, for its part, what is chosen there by then.
        self.clone.compare.click(self._compare_take, language, self.compare.outputs, **PRIVATE).then(
            lambda: gr.update(selected=COMPARE), None, self.tabs, **PRIVATE
        )
        begun = self.clone.edit.click(
            self._edit_result, [language, self.edit.out.format], [self.tabs, *self.edit.outputs], **PRIVATE
        )
        self.edit.begin_text_after(begun)

    @property
    def _live(self) -> list[gr.blocks.Block]:
        """What is looked at all the time."""
        return [
            *(self.banner, *self.performance.live.values(), *self.model.live.values()),
            *(self.clone.note, self.clone.examples, *self.clone.picker.offers, *self.edit.picker.offers),
        ]

    @property
    def _everything(self) -> list[gr.blocks.Block]:
        """What a change of language may change."""
        return list(
            dict.fromkeys(
                [
                    *(*self._desk.words.components, *self._live),
                    *(self.edit.task, self.edit.note, self.edit.option, *self.edit.outputs),
                    *(
                        self.clone.run,
                        self.clone.error,
                        self.clone.takes_made,
                        *self.compare.outputs,
                        *self.voices.outputs,
                    ),
                ]
            )
        )

    def _load(self, stored: str, request: gr.Request) -> dict[gr.blocks.Block, Any]:
        language: Language = "zh" if stored == "zh" else "en"
        if stored not in LANGUAGES:
            language = language_of(request.headers.get("accept-language", ""))
        translated = self._translated(self._desk.session(request), language, tasks.EDITS[0].name)
        return merged([*translated, (self._desk.language, language)])

    def _translate(
        self,
        language: Language,
        task: str,
        form: str,
        first: int | None,
        second: int | None,
        voice: str | None,
        request: gr.Request,
    ) -> dict[gr.blocks.Block, Any]:
        return merged(self._translated(self._desk.session(request), language, task, form, first, second, voice))

    def _translated(
        self,
        session: Session,
        language: Language,
        task: str,
        form: str = "wav",
        first: int | None = None,
        second: int | None = None,
        voice: str | None = None,
    ) -> list[tuple[gr.blocks.Block, Any]]:
        """Return everything that has words in it, in a language."""
        session.sent.clear()
        edit, compare, voices = self.edit, self.compare, self.voices
        return [
            *self._desk.words.updates(language),
            *self._fresh(session, language),
            (edit.option, gr.update(choices=option_choices(task, language))),
            *zip([edit.task, edit.note], edit.task_view(task, language), strict=True),
            *zip(edit.outputs, edit.view(session, language, form), strict=True),
            (self.clone.run, self.clone.report(session, language)),
            (self.clone.error, error_update("")),  # it is in the other language
            (self.clone.takes_made, self.clone.take_choices(session, language)),
            *zip(compare.outputs, compare.opened(session, first, second, language), strict=True),
            *zip(voices.outputs, voices.view(voice, language), strict=True),
        ]

    def _status(self, language: Language, request: gr.Request) -> dict[gr.blocks.Block, Any]:
        return merged([(self.banner, gr.skip()), *self._fresh(self._desk.session(request), language)])

    def _fresh(self, session: Session, language: Language) -> list[tuple[gr.blocks.Block, Any]]:
        """Return what of ``_live`` this tab does not show already."""
        stats = self._stats()
        banner = banners(self._service, stats, language)
        performance, model = self.performance, self.model
        now = [
            (self.banner, gr.update(value=banner, visible=bool(banner))),
            (self.clone.note, self.clone.note_for(language)),
            (self.clone.examples, gr.update(value=self.clone.examples_for(language))),
            *((performance.live[name], value) for name, value in performance.values(session, stats, language).items()),
            *((model.live[name], value) for name, value in model.values(language).items()),
        ]
        for picker in (self.clone.picker, self.edit.picker):
            now.extend(zip(picker.offers, picker.refreshed(language), strict=True))
        fresh = [(component, value) for component, value in now if session.sent.get(component._id) != value]
        session.sent.update({component._id: value for component, value in now})
        return fresh

    def _stats(self) -> CacheStats | None:
        engine = self._service.engine
        return engine.pipeline.cache.stats() if engine is not None else None

    def _compare(self, first: int | None, second: int | None, language: Language, request: gr.Request) -> list[Any]:
        return self.compare.opened(self._desk.session(request), first, second, language)

    def _compare_take(self, language: Language, request: gr.Request) -> list[Any]:
        return self.compare.opened_with_take(self._desk.session(request), language)

    def _edit_result(self, language: Language, form: str, request: gr.Request) -> list[Any]:
        session = self._desk.session(request)
        take = session.take
        if take is None:
            return [gr.skip(), *(gr.skip() for _ in self.edit.outputs)]
        sound = take.sound
        return [gr.update(selected=EDIT), *self.edit.begin_with(session, sound.wav, sound.transcript, language, form)]
