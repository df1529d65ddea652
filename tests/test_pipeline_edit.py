"""Edits on tiny weights: which texts each task takes, how long it may get, and that edits can be chained."""

from __future__ import annotations

import numpy as np
import pytest

from stepaudio import tasks
from stepaudio.errors import Cancelled, GenerationError, InvalidInput
from stepaudio.text import seconds_cap
from stepaudio.tokens import interleave
from stepaudio.types import Reference, SamplingParams, Task, Waveform
from tests.conftest import voice
from tests.test_pipeline import Spy

SHORT = {"sampling": SamplingParams(seed=11), "max_seconds": 0.6, "flow_steps": 1}
EDITS = [Task(spec.name, spec.options[0] if spec.options else None) for spec in tasks.EDITS]


@pytest.fixture
def pipeline(make_engine):
    return make_engine().pipeline


@pytest.fixture
def reference() -> Reference:
    return Reference(voice(1.0), "the words of the reference")


def new_text(task: Task) -> str | None:
    return "the words [Laughter] of the reference" if tasks.spec_of(task).needs_target else None


def codes(pipeline, waveform: Waveform):
    encoding = pipeline.cache.get_or_encode(waveform, lambda w: pytest.fail("must be a hit")).encoding
    return interleave(encoding.linguistic, encoding.semantic)


@pytest.mark.parametrize("task", EDITS, ids=lambda task: task.name)
def test_every_edit_asks_with_its_own_prompt_and_gives_sound_in_the_voice_of_the_reference(pipeline, reference, task):
    flow = Spy(pipeline._vocoder, "flow_many")
    made = pipeline.edit(reference, task, new_text=new_text(task), **SHORT)
    prompt = codes(pipeline, reference.waveform)
    assert list(made.prompt_ids) == pipeline._prompts.edit(task, reference.text, prompt, new_text(task))
    np.testing.assert_array_equal(flow.calls[0][0][0][0].prompt_tokens.numbers, prompt.numbers)
    assert len(made.waveform.samples) == 2880 * made.tokens.groups == 2880 * 5
    assert np.abs(made.waveform.samples).max() > 1e-3


@pytest.mark.parametrize("task", EDITS, ids=lambda task: task.name)
def test_the_result_knows_its_words(pipeline, reference, task):
    made = pipeline.edit(reference, task, new_text=new_text(task), **SHORT)
    assert made.transcript == (new_text(task) or reference.text)


def test_a_clone_knows_its_words_too(pipeline, reference):
    made = pipeline.clone(reference, " Hello. ", SamplingParams(seed=1), max_seconds=0.6, flow_steps=1)
    assert made.transcript == "Hello."


def test_only_denoise_and_vad_do_without_a_transcript(pipeline, reference):
    silent = Reference(reference.waveform, " ")
    for task in EDITS:
        if task.name in ("denoise", "vad"):
            assert pipeline.edit(silent, task, **SHORT).transcript == ""
        else:
            with pytest.raises(InvalidInput, match="transcript of the reference is empty"):
                pipeline.edit(silent, task, new_text=new_text(task), **SHORT)


@pytest.mark.parametrize(
    ("task", "text", "sentence"),
    [
        (Task("paralinguistic"), None, "The new text is empty."),
        (Task("paralinguistic"), " \x00", "The new text is empty."),
        (Task("paralinguistic"), "a" * 5001, "The new text has 5001 characters; the limit is 5000."),
        (Task("emotion", "happy"), "words", "The task 'emotion' takes no new text"),
        (Task("clone"), None, "The task 'clone' is not an edit"),
        (Task("emotion", "hungry"), None, "'hungry' is not one of them"),
        (Task("sing"), None, "There is no task 'sing'"),
    ],
)
def test_what_does_not_fit_the_task_is_refused_before_anything_is_encoded(pipeline, reference, task, text, sentence):
    encode = Spy(pipeline._encoder, "encode")
    with pytest.raises(InvalidInput, match=sentence):
        pipeline.edit(reference, task, new_text=text, **SHORT)
    assert encode.calls == []


@pytest.mark.parametrize("passes", [0, 6])
def test_the_number_of_passes_has_limits(pipeline, reference, passes):
    with pytest.raises(InvalidInput, match=f"passes is {passes}; it must lie between 1 and 5"):
        pipeline.edit(reference, Task("vad"), passes=passes, **SHORT)


@pytest.mark.parametrize("task", EDITS, ids=lambda task: task.name)
def test_the_length_is_bounded_by_the_reference_and_the_new_text(pipeline, task):
    """0.5 s of reference: the longest result is the task's stretch of it, 3 s, and what a new text may take."""
    short = Reference(voice(0.5), "words")
    generate = Spy(pipeline._lm, "generate_many")
    sampling = SamplingParams(seed=1)
    pipeline.edit(short, task, new_text="[Sigh]ab" if task.name == "paralinguistic" else None, sampling=sampling)
    seconds = generate.calls[0][1]["max_tokens"][0] / 5 * 0.12
    stretch = {"speed": 3.0, "denoise": 1.5, "vad": 1.5}.get(task.name, 2.0)
    longest = stretch * 0.5 + (seconds_cap("[Sigh]ab") if task.name == "paralinguistic" else 3.0)
    assert seconds == pytest.approx(min(longest, pipeline.limits.max_output_seconds), abs=0.12)


def test_the_new_text_lengthens_the_bound(pipeline):
    generate = Spy(pipeline._lm, "generate_many")
    bounds = []
    for text in ("a", "a [Laughter]"):
        pipeline.limits = type(pipeline.limits)(max_output_seconds=60.0)
        with pytest.raises(Cancelled):  # the bound is known before the first id is drawn
            pipeline.edit(
                Reference(voice(0.5), "a"),
                Task("paralinguistic"),
                new_text=text,
                should_stop=lambda: True,
            )
        bounds.append(generate.calls[-1][1]["max_tokens"][0])
    assert bounds[1] - bounds[0] == pytest.approx((3.0 + 0.2) / 0.12 * 5, abs=5)


def test_each_pass_gets_what_the_one_before_made_and_two_chained_edits_are_the_same(pipeline, reference):
    task = Task("style", "whisper")
    encode = Spy(pipeline._encoder, "encode")
    twice = pipeline.edit(reference, task, passes=2, **SHORT)
    once = pipeline.edit(reference, task, **SHORT)
    np.testing.assert_array_equal(encode.calls[1][0][0].samples, once.waveform.samples)
    again = pipeline.edit(Reference(once.waveform, once.transcript), task, **SHORT)
    np.testing.assert_array_equal(twice.waveform.samples, again.waveform.samples)
    assert list(twice.prompt_ids) == list(again.prompt_ids) != list(once.prompt_ids)
    assert not twice.cache_hit
    assert once.cache_hit
    assert again.cache_hit


def test_a_pass_after_the_first_takes_the_new_text_for_the_transcript(pipeline, reference):
    edit = Spy(pipeline._prompts, "edit")
    pipeline.edit(reference, Task("paralinguistic"), new_text="new [Sigh] words", passes=2, **SHORT)
    assert [call[0][1] for call in edit.calls] == [reference.text, "new [Sigh] words"]


def test_all_passes_share_the_seed_that_is_reported(pipeline, reference):
    generate = Spy(pipeline._lm, "generate_many")
    made = pipeline.edit(reference, Task("vad"), passes=2, max_seconds=0.6, flow_steps=1)
    assert {seed for call in generate.calls for seed in call[1]["seeds"]} == {made.seed}


def test_a_pass_with_too_little_sound_for_the_next_ends_the_edit(pipeline, reference):
    with pytest.raises(GenerationError, match=r"Pass 1 gave only 0\.12 s"):
        pipeline.edit(reference, Task("vad"), passes=2, max_seconds=0.12, flow_steps=1)


def test_each_of_several_passes_is_a_stage_and_a_single_one_is_not(pipeline, reference):
    made = pipeline.edit(reference, Task("vad"), passes=2, **SHORT)
    assert [stage.name for stage in made.timings.stages] == ["Pass 1", "Pass 2"]
    assert [child.name for child in made.timings.stages[1].children] == ["FunASR", "LLM", "Flow", "Vocoder", "other"]
    one = pipeline.edit(reference, Task("vad"), **SHORT)
    assert [stage.name for stage in one.timings.stages] == ["FunASR", "LLM", "Flow", "Vocoder"]


def test_weights_that_want_words_get_them_and_the_transcript_stays_as_it_was_typed(pipeline, reference):
    pipeline._verbalise = lambda text: text.replace("3", "three")
    edit = Spy(pipeline._prompts, "edit")
    made = pipeline.edit(
        Reference(reference.waveform, "I am 3"), Task("paralinguistic"), new_text="I am [Sigh] 3", passes=2, **SHORT
    )
    assert [(call[0][1], call[1]["target"]) for call in edit.calls] == [
        ("I am three", "I am [Sigh] three"),
        ("I am [Sigh] three", "I am [Sigh] three"),
    ]
    assert made.transcript == "I am [Sigh] 3"
