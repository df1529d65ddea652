"""The one table of what the model can be asked to do: tasks, their options, instructions and tags.

Prompts, page, API and tests all read it here. The instructions are the model's training text: not one character,
odd spacing included, may differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stepaudio.errors import InvalidInput
from stepaudio.types import Task

CLONE = "clone"
REMOVE = "remove"
"""The option of emotion and style that takes an expression away."""

_PLACE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class TaskSpec:
    """One task: what it takes and the instruction it becomes.

    options: the legal options, () when it takes none. instruction: text with the places {option}, {transcript}
    (of the sound to edit) and {target} (the new text); "" for clone, whose prompt has none. ``remove`` stands in
    its place for the option "remove". stretch: how many times as long as the sound that is edited the result may
    become, besides what a new text takes (see text.seconds_cap): a generous bound, so that a runaway ends.
    """

    name: str
    options: tuple[str, ...] = ()
    instruction: str = ""
    remove: str = ""
    stretch: float = 2.0

    @property
    def is_edit(self) -> bool:
        return self.name != CLONE

    @property
    def needs_transcript(self) -> bool:
        """Whether the words of the sound given are part of the prompt."""
        return not self.is_edit or "{transcript}" in self.instruction

    @property
    def needs_target(self) -> bool:
        """Whether the task takes a new text to speak."""
        return not self.is_edit or "{target}" in self.instruction


_EMOTIONS = (
    "happy angry sad humour confusion disgusted empathy embarrass fear surprised excited depressed coldness admiration"
)
_STYLES = (
    "serious arrogant child older girl pure sister sweet ethereal whisper gentle recite generous act_coy warm shy "
    "comfort authority chat radio soulful story vivid program news advertising roar murmur shout deeply loudly "
    "exaggerated"
)
_MORE = "Make the following audio more {option}. The text corresponding to the audio is: {transcript}\n"
_MORE_STYLE = "Make the following audio more {option} style. The text corresponding to the audio is: {transcript}\n"
_ADD_SOUNDS = (
    "Add some non-verbal sounds to make the audio more natural, the new text is : {target}\n"
    "  The text corresponding to the audio is: {transcript}\n"
)
_NO_NOISE = (
    "Remove any noise from the given audio while preserving the voice content clearly. Ensure that the speech "
    "quality remains intact with minimal distortion, and eliminate all noise from the audio.\n"
)
_NO_SILENCE = (
    "Remove any silent portions from the given audio while preserving the voice content clearly. Ensure that the "
    "speech quality remains intact with minimal distortion, and eliminate all silence from the audio.\n"
)
_NO_EMOTION = "Remove any emotion in the following audio and the reference text is: {transcript}\n"
_NO_STYLE = "Remove any speaking styles in the following audio and the reference text is: {transcript}\n"

TASKS: Mapping[str, TaskSpec] = MappingProxyType(
    {
        spec.name: spec
        for spec in (
            TaskSpec(CLONE),
            TaskSpec("emotion", (*_EMOTIONS.split(), REMOVE), _MORE, _NO_EMOTION),
            TaskSpec("style", (*_STYLES.split(), REMOVE), _MORE_STYLE, _NO_STYLE),
            TaskSpec("speed", ("faster", "slower", "more faster", "more slower"), _MORE, stretch=3.0),
            TaskSpec("paralinguistic", (), _ADD_SOUNDS),
            TaskSpec("denoise", (), _NO_NOISE, stretch=1.5),
            TaskSpec("vad", (), _NO_SILENCE, stretch=1.5),
        )
    }
)
EDITS: tuple[TaskSpec, ...] = tuple(spec for spec in TASKS.values() if spec.is_edit)

PARALINGUISTIC_TAGS: tuple[str, ...] = (
    "[Breathing]",
    "[Laughter]",
    "[Uhm]",
    "[Sigh]",
    "[Surprise-oh]",
    "[Surprise-ah]",
    "[Surprise-wa]",
    "[Confirmation-en]",
    "[Question-ei]",
    "[Dissatisfaction-hnn]",
    "[inhale]",
    "[exhale]",
    "[laugh]",
    "[chuckle]",
    "[giggle]",
    "[clears throat]",
    "[snort]",
    "[cough]",
    "[breath]",
    "[sigh]",
    "[uhm]",
    "[Surprise-yo]",
    "[Question-ah]",
    "[Question-en]",
    "[Question-yi]",
    "[Question-oh]",
)
"""Sounds that may stand inside a text; the first ten since the first release, the others since January 2026."""

LANGUAGE_TAGS: tuple[str, ...] = ("[Sichuanese]", "[Cantonese]", "[Japanese]", "[Korean]")
"""Languages and dialects; the tag stands before the text. Mandarin and English need none."""


def spec_of(task: Task) -> TaskSpec:
    """Return the table's entry for ``task``; raises InvalidInput for an unknown task or option."""
    spec = TASKS.get(task.name)
    if spec is None:
        raise InvalidInput(f"There is no task {task.name!r}; the tasks are {', '.join(TASKS)}.")
    if not spec.options:
        if task.option is not None:
            raise InvalidInput(f"The task {task.name!r} takes no option, but {task.option!r} was given.")
    elif task.option not in spec.options:
        given = "none was given" if task.option is None else f"{task.option!r} is not one of them"
        raise InvalidInput(f"The options of {task.name!r} are {', '.join(spec.options)}; {given}.")
    return spec


def spec_of_edit(task: Task) -> TaskSpec:
    """Return the table's entry for an edit; raises InvalidInput as spec_of does, and for clone."""
    spec = spec_of(task)
    if not spec.is_edit:
        edits = ", ".join(edit.name for edit in EDITS)
        raise InvalidInput(f"The task {task.name!r} is not an edit; the edits are {edits}.")
    return spec


def instruction(task: Task, transcript: str = "", target: str | None = None) -> str:
    """Return the instruction of an edit.

    transcript: the words of the sound, stripped here. target: the new text of paralinguistic, taken as it is.
    Both are put in literally: braces in them mean nothing. Raises InvalidInput for an unknown task or option, for
    clone (which has no instruction) and for a missing target.
    """
    spec = spec_of_edit(task)
    if spec.needs_target and target is None:
        raise InvalidInput(f"The task {task.name!r} needs a new text, and none was given.")
    template = spec.remove if task.option == REMOVE else spec.instruction
    values = {"option": task.option or "", "transcript": transcript.strip(), "target": target or ""}
    return _PLACE.sub(lambda place: values[place[1]], template)
