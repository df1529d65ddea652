"""tasks.py against the recorded instructions, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stepaudio import tasks
from stepaudio.errors import InvalidInput
from stepaudio.types import Task


@pytest.fixture(scope="module")
def recorded(conformance: Path) -> dict:
    return json.loads((conformance / "tokens_prompts" / "instructions.json").read_text("utf-8"))


def test_the_table_offers_exactly_the_recorded_tasks_and_options(recorded: dict) -> None:
    supported = recorded["supported_edit_types"]
    assert set(tasks.TASKS) == set(supported)
    for name, options in supported.items():
        assert sorted(tasks.TASKS[name].options) == sorted(options)


def test_every_recorded_instruction_is_reproduced_and_every_refusal_too(recorded: dict) -> None:
    made = refused = 0
    for case in recorded["cases"]:
        task = Task(case["edit_type"], case["edit_info"])
        if "error" in case:
            with pytest.raises(InvalidInput, match=f"'{case['edit_type']}'"):
                tasks.instruction(task, "words", "new words")
            refused += 1
        else:
            assert tasks.instruction(task, case["audio_text"], case["target_text"]) == case["instruction"]
            made += 1
    assert (made, refused) == (55, 4)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        (Task("sing"), "There is no task 'sing'; the tasks are clone, emotion, style"),
        (Task("emotion"), "The options of 'emotion' are happy, .*; none was given."),
        (Task("speed", "remove"), "The options of 'speed' are .*'remove' is not one of them."),
        (Task("emotion", "Happy"), "'Happy' is not one of them."),
        (Task("denoise", "much"), "The task 'denoise' takes no option, but 'much' was given."),
    ],
)
def test_an_unknown_task_or_option_is_refused_in_one_sentence(task: Task, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        tasks.spec_of(task)


def test_paralinguistic_without_a_new_text_is_refused() -> None:
    with pytest.raises(InvalidInput, match="needs a new text"):
        tasks.instruction(Task("paralinguistic"), "words")
    assert " : new\n  The" in tasks.instruction(Task("paralinguistic"), "words", "new")


def test_braces_in_a_users_text_are_taken_literally() -> None:
    result = tasks.instruction(Task("paralinguistic"), "{target} {option}", "{transcript}")
    assert "the new text is : {transcript}\n" in result
    assert result.endswith("is: {target} {option}\n")


def test_the_table_says_what_each_task_needs() -> None:
    needs = {spec.name: (spec.needs_transcript, spec.needs_target) for spec in tasks.TASKS.values()}
    assert needs == {
        "clone": (True, True),
        "emotion": (True, False),
        "style": (True, False),
        "speed": (True, False),
        "paralinguistic": (True, True),
        "denoise": (False, False),
        "vad": (False, False),
    }
    assert [spec.name for spec in tasks.EDITS] == list(tasks.TASKS)[1:]


def test_tags_are_bracketed_and_stand_once() -> None:
    tags = tasks.PARALINGUISTIC_TAGS + tasks.LANGUAGE_TAGS
    assert len(set(tags)) == len(tags) == 30
    assert all(tag.startswith("[") and tag.endswith("]") for tag in tags)


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        tasks.TASKS["sing"] = tasks.TaskSpec("sing")  # type: ignore[index]
