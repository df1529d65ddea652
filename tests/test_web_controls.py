"""Every control of the page does what it says: its value reaches the pipeline, which a fake one records."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pytest
import soundfile

from stepaudio.asr import Transcriber
from stepaudio.audiofile import encode_float_wav
from stepaudio.service import Service
from stepaudio.settings import Settings
from stepaudio.tasks import EDITS, PARALINGUISTIC_TAGS, TASKS
from stepaudio.text import passages
from stepaudio.types import EncodingTimes, SpeechTokens, Stage, Synthesis, Task, Timings
from stepaudio.variants import variants
from stepaudio.voices import VoiceDraft
from stepaudio.web.clone_tab import EXAMPLES
from stepaudio.web.desk import file_of
from stepaudio.web.parts import tag_bar
from tests.conftest import voice
from tests.page_kit import Studio, build_page, shown_value

READ_BY_SCRIPTS = {"live"}  # see player.js; a test in a browser tells that it has an effect


@dataclass
class Recorder:
    """In the place of a pipeline's methods: remembers the calls and answers with a sound at once."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def clone(self, reference, text, sampling, **others) -> Synthesis:
        (made,) = self.takes(reference, text, 1, sampling, **others)
        return made

    def takes(self, reference, text, count, sampling, **others) -> list[Synthesis]:
        self.calls.append({"reference": reference, "text": text, "takes": count, "sampling": sampling, **others})
        first = synthesis(text, sampling.seed)
        return [first, *(synthesis(text, first.seed + number) for number in range(1, count))]

    def edit(self, reference, task, *, new_text, sampling, **others) -> Synthesis:
        self.calls.append({"reference": reference, "task": task, "new_text": new_text, "sampling": sampling, **others})
        return synthesis(new_text or reference.text, sampling.seed)

    @property
    def last(self) -> dict[str, Any]:
        return self.calls[-1]


def synthesis(words: str, seed: int | None) -> Synthesis:
    number = seed if seed is not None else 4711
    return Synthesis(
        waveform=voice(1.0, seed=number % 1000),
        tokens=SpeechTokens(np.zeros(5, np.int64)),
        prompt_ids=(),
        timings=Timings(0.5, (Stage("Clone", 0.5, children=(Stage("LLM", 0.3),)),)),
        encoding=EncodingTimes(True, 0.0, 0.0),
        seed=number,
        stopped="end",
        transcript=words,
    )


@pytest.fixture(scope="module")
def engine(tiny_weights, tmp_path_factory):
    """Tiny weights with two preset voices, and something that pretends to transcribe."""
    from stepaudio import device
    from stepaudio.loading import load_engine
    from stepaudio.weights import choose_weights

    folder = tmp_path_factory.mktemp("controls")
    weights = shutil.copytree(tiny_weights, folder / "weights")
    (weights / "presets").mkdir()
    (weights / "presets" / "ada.json").write_text('{"name": "Ada", "transcript": "Ada speaks.", "language": "en"}')
    soundfile.write(weights / "presets" / "ada.flac", voice(1.0, pitch=200.0).samples, 24000)
    settings = Settings(weights=str(weights), cache_dir=folder / "cache")
    loaded = load_engine(choose_weights(settings), settings, device.choose("cpu", settings.dtype))
    yield replace(loaded, transcriber=Transcriber(lambda samples: f"heard {len(samples)}", name="fake"))
    loaded.close()


@pytest.fixture
def recorder(engine, monkeypatch) -> Recorder:
    fake = Recorder()
    monkeypatch.setattr(engine.pipeline, "clone", fake.clone)
    monkeypatch.setattr(engine.pipeline, "takes", fake.takes)
    monkeypatch.setattr(engine.pipeline, "edit", fake.edit)
    return fake


@pytest.fixture(scope="module")
def start(engine, tmp_path_factory):
    """Start a service over the engine, with a folder and settings of its own."""
    made = []

    def begin(**settings) -> Service:
        folder = tmp_path_factory.mktemp("service")
        running = Service(Settings(cache_dir=folder / "cache", data_dir=folder / "data", **settings), lambda: engine)
        running.start()
        assert running.wait_until_decided(120) == "ready"
        made.append(running)
        return running

    yield begin
    for service in made:
        service.queue.close()


@pytest.fixture(scope="module")
def service(start) -> Service:
    return start()


@pytest.fixture(scope="module")
def page(service) -> gr.Blocks:
    return build_page(service)


@pytest.fixture(scope="module")
def strict_service(start) -> Service:
    return start(require_consent=True)


@pytest.fixture(scope="module")
def strict_page(strict_service) -> gr.Blocks:
    return build_page(strict_service)


@pytest.fixture
def studio(page, service, recorder) -> Studio:
    """A new tab with everything filled in that a clone and an edit need; no voice is saved."""
    for saved in service.voices.list():
        service.voices.delete(saved.id)
    fields = {"reference": upload(), "transcript": "T", "text": "X"}
    return Studio(page).fill(**fields, edit_reference=upload(), edit_transcript="T")


def upload(seconds: float = 1.0) -> str:
    return file_of(encode_float_wav(voice(seconds)), "upload.wav")


CLONE_CONTROLS = {
    "transcript": ("other words", lambda call: call["reference"].text, "other words"),
    "text": ("other text", lambda call: call["text"], "other text"),
    "language_tag": ("[Japanese]", lambda call: call["text"], "[Japanese]X"),
    "temperature": (0.3, lambda call: call["sampling"].temperature, 0.3),
    "top_k": (7, lambda call: call["sampling"].top_k, 7),
    "top_p": (0.8, lambda call: call["sampling"].top_p, 0.8),
    "takes": (3, lambda call: call["takes"], 3),
    "max_seconds": (2, lambda call: call["max_seconds"], 2),
    "flow_steps": (3, lambda call: call["flow_steps"], 3),
}


@pytest.mark.parametrize("name", CLONE_CONTROLS)
def test_each_field_of_a_clone_reaches_the_pipeline(studio, recorder, name):
    value, read, expected = CLONE_CONTROLS[name]
    studio.press("generate")
    assert read(recorder.last) != expected
    studio.fill(**{name: value}).press("generate")
    assert read(recorder.last) == expected


def test_the_seed_is_drawn_or_taken_as_the_tick_says(studio, recorder):
    studio.fill(seed=5).press("generate")
    assert recorder.last["sampling"].seed is None
    assert studio.value("seed") == 4711  # the one that was used is written back
    studio.fill(seed=6, new_seed=False).press("generate")
    assert recorder.last["sampling"].seed == 6


def test_one_of_several_takes_is_picked_heard_and_edited(studio, recorder):
    made = studio.fill(takes=3, seed=10, new_seed=False).press("generate")
    assert [value for _, value in made["takes-made"]["choices"]] == [0, 1, 2]
    assert "seed 12" in made["takes-made"]["choices"][2][0]
    first = Path(studio.value("result")).read_bytes()
    studio.fill(takes_made=2).press("takes-made", "input")
    assert studio.value("seed") == 12  # so that this take can be made again
    assert Path(studio.value("result")).read_bytes() != first
    studio.press("edit-this")
    studio.press("apply")
    np.testing.assert_allclose(recorder.last["reference"].waveform.samples, voice(1.0, seed=12).samples, atol=1e-4)
    assert studio.fill(takes=1).press("generate")["takes-made"]["visible"] is False


def test_the_upload_is_the_reference_and_its_length_reaches_the_pipeline(studio, recorder):
    studio.fill(reference=upload(1.5)).press("generate")
    assert recorder.last["reference"].waveform.seconds == pytest.approx(1.5)


def test_a_preset_is_one_click_and_brings_its_sound_and_its_words(studio, recorder):
    studio.fill(presets="preset:ada").press("presets", "input")
    assert studio.value("voice") == "preset:ada"
    assert studio.value("transcript") == "Ada speaks."
    assert studio.value("voice-sound").endswith(".wav")
    studio.press("generate")
    assert recorder.last["reference"].text == "Ada speaks."
    np.testing.assert_allclose(recorder.last["reference"].waveform.samples, voice(1.0, pitch=200.0).samples, atol=1e-3)


def test_a_saved_voice_brings_its_sound_and_its_words(studio, service, recorder):
    saved = service.save_voice(VoiceDraft(encode_float_wav(voice(2.0)), "Bob", "Bob speaks.")).result(60).voice
    studio.fill(voice=f"voice:{saved.id}").press("voice", "input")
    assert studio.value("transcript") == "Bob speaks."
    studio.press("generate")
    assert recorder.last["reference"].text == "Bob speaks."
    assert recorder.last["reference"].waveform.seconds == pytest.approx(2.0)


def test_a_saved_voice_that_is_gone_is_told_in_one_sentence(studio):
    assert "has been deleted" in shown_value(studio.fill(voice="voice:0123456789abcdef").press("generate")["error"])


def test_an_empty_transcript_is_filled_with_what_is_heard(studio, recorder):
    studio.fill(transcript="").press("generate")
    assert recorder.last["reference"].text == "heard 16000"
    assert studio.value("transcript") == "heard 16000"


def test_what_is_said_is_written_down_at_a_click(studio):
    studio.fill(transcript="").press("transcribe")
    assert studio.value("transcript") == "heard 16000"


@pytest.mark.parametrize(
    ("form", "ending", "subtype"), [("flac", ".flac", "FLAC"), ("mp3", ".mp3", "MP3"), ("opus", ".opus", "OGG")]
)
def test_the_format_is_that_of_the_file_to_take_home(studio, form, ending, subtype):
    studio.press("generate")
    assert studio.value("download").endswith(".wav")
    path = studio.fill(format=form).press("format", "input")["download"]["value"]
    assert path.endswith(ending)
    assert soundfile.info(path).format == subtype
    assert studio.fill(format=form).press("generate")["download"]["value"].endswith(ending)


@pytest.mark.parametrize(("button", "error"), [("generate", "error"), ("apply", "edit-error")])
def test_where_consent_is_required_a_new_voice_needs_the_tick_and_a_saved_one_does_not(
    strict_page, recorder, button, error
):
    prefix = "edit_" if button == "apply" else ""
    fields = {f"{prefix}reference": upload(), f"{prefix}transcript": "T", "text": "X"}
    studio = Studio(strict_page).fill(**fields)
    assert "agreed" in shown_value(studio.press(button)[error])
    assert recorder.calls == []
    studio.fill(**{f"{prefix}consent": True}).press(button)
    assert len(recorder.calls) == 1
    studio.fill(**{f"{prefix}consent": False, f"{prefix}voice": "preset:ada"}).press(button)
    assert len(recorder.calls) == 2 if button == "generate" else 1


def test_characters_and_seconds_of_the_text_are_counted(studio):
    html = studio.fill(text="Hello there.").press("text", "change")["text-facts"]
    assert "12 of 5000 characters" in html
    assert 'class="over"' not in html
    assert "<li>" not in html
    assert 'class="over"' in studio.fill(text="a" * 5001).press("text", "change")["text-facts"]


def test_the_passages_of_a_long_text_are_shown_before_it_is_spoken(studio, service):
    text = " ".join(f"This is sentence number {number} of a text that is long." for number in range(12))
    html = studio.fill(text=text).press("text", "change")["text-facts"]
    expected = passages(text, service.settings.passage_seconds)
    assert html.count("<li>") == len(expected) >= 2
    assert f"<li>{expected[0].text}</li>" in html


# Edit

EDIT_CONTROLS = {
    "passes": (3, lambda call: call["passes"], 3),
    "edit_temperature": (0.3, lambda call: call["sampling"].temperature, 0.3),
    "edit_top_k": (7, lambda call: call["sampling"].top_k, 7),
    "edit_top_p": (0.8, lambda call: call["sampling"].top_p, 0.8),
    "edit_max_seconds": (2, lambda call: call["max_seconds"], 2),
    "edit_flow_steps": (3, lambda call: call["flow_steps"], 3),
    "edit_transcript": ("other words", lambda call: call["reference"].text, "other words"),
}


@pytest.mark.parametrize("name", EDIT_CONTROLS)
def test_each_field_of_an_edit_reaches_the_pipeline(studio, recorder, name):
    value, read, expected = EDIT_CONTROLS[name]
    studio.press("apply")
    assert read(recorder.last) != expected
    studio.press("clear-chain")
    studio.fill(**{name: value, "edit_reference": upload()}).press("apply")
    assert read(recorder.last) == expected


@pytest.mark.parametrize("spec", EDITS, ids=lambda spec: spec.name)
def test_every_task_with_every_option_reaches_the_pipeline(studio, recorder, spec):
    updates = studio.fill(task=spec.name).press("task", "change")
    assert [value for _, value in updates["option"]["choices"]] == list(spec.options)
    assert updates["option"]["visible"] == bool(spec.options)
    for option in spec.options or (None,):
        studio.fill(option=option, new_text="Well [Laughter] yes.").press("apply")
        assert recorder.last["task"] == Task(spec.name, option)
        assert recorder.last["new_text"] == ("Well [Laughter] yes." if spec.needs_target else None)


def test_an_edit_seed_is_drawn_or_taken_as_the_tick_says(studio, recorder):
    studio.fill(edit_seed=6, edit_new_seed=False).press("apply")
    assert recorder.last["sampling"].seed == 6
    studio.fill(edit_new_seed=True).press("apply")
    assert recorder.last["sampling"].seed is None
    assert studio.value("edit-seed") == 4711


def test_a_chain_of_three_edits_can_be_gone_back_in_and_branched(studio, recorder):
    def step(seed: int, option: str) -> None:
        studio.fill(edit_new_seed=False, edit_seed=seed, option=option).press("apply")

    step(1, "happy")
    step(2, "sad")
    step(3, "angry")
    np.testing.assert_allclose(recorder.last["reference"].waveform.samples, voice(1.0, seed=2).samples, atol=1e-4)
    assert studio.value("chain") == 3
    studio.fill(chain=1).press("chain", "input")
    step(4, "fear")  # a branch: from step 1, not from the last one
    np.testing.assert_allclose(recorder.last["reference"].waveform.samples, voice(1.0, seed=1).samples, atol=1e-4)
    choices = studio.press("restore")["chain"]["choices"]
    assert [number for _, number in choices] == [0, 1, 2, 3, 4]
    assert "from 1" in choices[4][0]
    assert "seed 4" in choices[4][0]
    assert studio.value("chain") == 0
    step(5, "happy")
    np.testing.assert_array_equal(recorder.last["reference"].waveform.samples, voice(1.0).samples)
    cleared = studio.press("clear-chain")
    assert cleared["chain"]["choices"] == []
    assert cleared["edit-source"]["visible"] is True


def test_a_result_of_a_clone_is_edited_with_its_text_as_transcript(studio, recorder):
    studio.fill(text="The new words.", seed=8, new_seed=False).press("generate")
    opened = studio.press("edit-this")
    assert opened["tabs"]["selected"] == "edit"
    studio.press("apply")
    assert recorder.last["reference"].text == "The new words."
    np.testing.assert_allclose(recorder.last["reference"].waveform.samples, voice(1.0, seed=8).samples, atol=1e-4)


def test_an_edit_that_fails_leaves_the_chain_as_it_was(studio, recorder, engine, monkeypatch):
    studio.press("apply")
    before = studio.press("chain", "input")["chain"]["choices"]
    with monkeypatch.context() as patch:
        patch.setattr(engine.pipeline, "edit", lambda *args, **named: 1 / 0)
        failed = studio.press("apply")
    assert "Internal error" in shown_value(failed["edit-error"])
    assert failed["chain"]["choices"] == before


def test_another_tab_sees_nothing_of_all_this(studio):
    studio.press("generate")
    studio.press("apply")
    other = studio.press("chain", "input", session="other")
    assert other["chain"]["choices"] == []
    assert other["edit-result"] is None


# Voices


def test_a_voice_is_saved_listed_renamed_exported_imported_and_deleted(studio, service):
    voices = service.voices
    studio.fill(new_sound=upload(), new_name="Cleo", new_transcript="Words.", new_language="en")
    studio.fill(new_consent_note="She wrote it.", new_consent=True).press("save-voice")
    (saved,) = voices.list()
    assert (saved.name, saved.transcript, saved.language) == ("Cleo", "Words.", "en")
    assert saved.consent.startswith("She wrote it. The speaker agreed (confirmed 20")
    assert studio.value("voice-list") == saved.id
    exported = Path(studio.value("export")).read_bytes()
    assert studio.value("voice-listen").endswith(".wav")
    studio.fill(rename_to="Cleopatra").press("rename")
    assert [each.name for each in voices.list()] == ["Cleopatra"]
    assert studio.press("delete")["delete-confirm"]["visible"] is True
    assert len(voices.list()) == 1
    studio.press("delete-yes")
    assert voices.list() == ()
    studio.fill(import_voice=file_of(exported, "cleo.zip")).press("import-voice", "upload")
    (back,) = voices.list()
    assert (back.name, back.transcript, back.consent) == ("Cleo", "Words.", saved.consent)
    np.testing.assert_array_equal(
        soundfile.read(studio.value("voice-listen"))[0].astype(np.float32), voice(1.0).samples
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"new_sound": None}, "upload or record"),
        ({"new_name": " "}, "name of the voice is empty"),
        ({"new_name": "x" * 81}, "81 characters"),
    ],
)
def test_a_voice_that_cannot_be_saved_is_told_in_one_sentence(studio, fields, expected):
    studio.fill(new_sound=upload(), new_name="Cleo", new_transcript="Words.").fill(**fields)
    assert expected in shown_value(studio.press("save-voice")["voices-error"])


def test_a_new_voice_without_a_transcript_gets_what_is_heard(studio):
    studio.fill(new_sound=upload(), new_name="Cleo", new_transcript="").press("save-voice")
    assert "heard 16000" in studio.press("voice-list", "input")["voice-about"]


def test_a_file_that_is_no_voice_is_refused(studio):
    refused = studio.fill(import_voice=file_of(b"PK no", "x.zip")).press("import-voice", "upload")
    assert "not a voice" in shown_value(refused["voices-error"])


def test_where_consent_is_required_a_voice_is_saved_with_the_tick_only(strict_page, strict_service):
    studio = Studio(strict_page).fill(new_sound=upload(), new_name="Cleo", new_transcript="Words.")
    assert "agreed" in shown_value(studio.press("save-voice")["voices-error"])
    assert strict_service.voices.list() == ()
    studio.fill(new_consent=True).press("save-voice")
    assert len(strict_service.voices.list()) == 1


# Compare, performance, all tabs


def test_the_sounds_that_are_chosen_are_compared(studio):
    studio.press("generate")
    opened = studio.press("compare-this")
    numbers = [number for _, number in opened["compare-first"]["choices"]]
    assert (studio.value("compare-first"), studio.value("compare-second")) == (numbers[0], numbers[1])
    assert opened["pictures"].count("<svg") == 2
    assert opened["pictures"].count("data:image/png") == 2
    twice = studio.fill(compare_first=numbers[1]).press("compare-first", "input")
    assert twice["sound-a"] == twice["sound-b"]
    assert 'data-gain-a="1.0000" data-gain-b="1.0000"' in twice["ab"]


def test_the_cache_is_cleared_by_the_second_click_only(studio, engine):
    engine.pipeline.encode(voice(1.0))
    assert engine.pipeline.cache.stats().entries > 0
    studio.press("clear")
    assert engine.pipeline.cache.stats().entries > 0
    studio.press("clear-yes")
    assert engine.pipeline.cache.stats().entries == 0


def test_no_control_is_without_an_effect(studio):
    """Every field is read by something, every button does something."""
    read = {block._id for function in studio.blocks.fns.values() for block in function.inputs}
    triggers = {target[0] for function in studio.blocks.fns.values() for target in function.targets}
    fields = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.Radio, gr.Dropdown, gr.Audio, gr.UploadButton)
    idle = []
    for block in studio.blocks.blocks.values():
        if isinstance(block, gr.Button) and block._id not in triggers:
            idle.append(block.elem_id)
        if isinstance(block, fields) and block.interactive is not False and block._id not in read | triggers:
            idle.append(block.elem_id)
    assert set(idle) == READ_BY_SCRIPTS


def test_every_control_has_a_name_in_both_languages(studio):
    """What stands beside or in it; a field without one is no field to a reader of the screen."""
    named = (gr.Textbox, gr.Number, gr.Slider, gr.Checkbox, gr.Radio, gr.Dropdown, gr.Audio, gr.Accordion, gr.Tab)
    for block in studio.blocks.blocks.values():
        if isinstance(block, named) and block.visible is not False:
            assert block.label, block.elem_id
        if isinstance(block, gr.Button) and not isinstance(block, gr.UploadButton):
            assert block.value, block.elem_id


@pytest.mark.parametrize("path", ["/etc/hostname", "http://127.0.0.1:1/x"])
def test_a_component_that_gradio_has_made_anew_takes_uploads_only_still(studio, path):
    for block in (studio.component("reference"), type(studio.component("reference"))(render=False)):
        assert block.get_block_name() == "audio"  # the browser takes it for what it is
        with pytest.raises(gr.Error, match="must be uploaded"):
            asyncio.run(block.async_move_resource_to_block_cache(path))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_tag_bar_has_every_tag_of_the_table(language):
    html = tag_bar("#text", language)
    assert [tag for tag in PARALINGUISTIC_TAGS if f'data-tag="{tag}"' not in html] == []


def test_the_variants_are_shown_with_the_one_that_runs_and_why_not_the_others(studio, engine):
    table = studio.press("language", "input")["variants"]["value"]
    for each in variants(engine.weights):
        assert escape(each.title["en"]) in table
        assert escape(each.reason["en"]) in table
    assert table.count("● running") == 1


def test_tasks_that_the_weights_have_not_learnt_are_marked(studio, engine, monkeypatch):
    monkeypatch.setattr("stepaudio.weights.WeightsCard.knows", lambda card, task: task in ("clone", "emotion"))
    spoken = studio.press("language", "input")
    assert {name: label.endswith("○") for label, name in spoken["task"]["choices"]} == {
        spec.name: spec.name != "emotion" for spec in EDITS
    }
    note = studio.fill(task="speed").press("task", "change")["task-note"]
    assert note["visible"] is True
    assert engine.weights.card.title in note["value"]
    assert studio.fill(task="emotion").press("task", "change")["task-note"]["visible"] is False
    table = spoken["tasks"]["value"]
    assert table.count("✓") == 2
    assert table.count("○") == len(TASKS) - 2


def test_the_texts_to_begin_with_are_in_a_language_that_the_weights_understand(studio, monkeypatch):
    def texts(language: str) -> list[str]:
        shown = studio.fill(language=language).press("language", "input")["examples"]["value"]
        return re.findall('data-text="([^"]+)"', shown)

    assert texts("zh") == list(EXAMPLES["zh"])
    monkeypatch.setattr("stepaudio.weights.WeightsCard.understands", lambda card, language: language == "en")
    assert texts("zh") == texts("en") == list(EXAMPLES["en"])
