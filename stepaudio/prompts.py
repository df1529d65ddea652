"""Prompts: a task, its texts and speech tokens become the ids that the language model reads.

Ids are built with sentencepiece itself: transformers 5 turns the same tokenizer.model into a different (BPE)
tokenizer and gets every prompt wrong. Text of a user is spelled with ordinary pieces only, whatever it contains;
control ids and audio ids enter as ids, never through text.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import sentencepiece
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece import sentencepiece_model_pb2

from stepaudio import tasks
from stepaudio.errors import WeightsError
from stepaudio.tokens import LINGUISTIC_CODES, SEMANTIC_CODES, SpeechVocabulary
from stepaudio.types import FloatArray, SpeechTokens, Task, Waveform

Layout = Literal["current", "legacy"]

TOKENIZER_FILE = "tokenizer.model"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
CURRENT_SPEAKER = "debug"
"""The fixed speaker name that the current prompt layout was used with."""

_SPEAKER_EDGE = 1000
_CLONE_HEAD = "Generate audio with the following timbre, prosody and speaking style\n\n[speaker_start]\n"
_EDIT_SYSTEM = (
    "As a highly skilled audio editing and tuning specialist, you excel in interpreting user instructions and "
    "applying precise adjustments to meet their needs. Your expertise spans a wide range of enhancement "
    "capabilities, including but not limited to:\n"
    "# Emotional Enhancement\n# Speaking Style Transfer\n# Non-linguistic Adjustments\n# Audio Tuning & Editing\n"
    "Note: You will receive instructions in natural language and are expected to accurately interpret and execute "
    "the most suitable audio edits and enhancements.\n"
)


@dataclass(frozen=True)
class ControlIds:
    """The ids of the control pieces that prompts are built with."""

    begin: int
    end_of_turn: int
    begin_of_turn: int
    audio_start: int
    text_start: int
    text_end: int


_CONTROL_PIECES = {
    "begin": "<s>",
    "end_of_turn": "<|EOT|>",
    "begin_of_turn": "<|BOT|>",
    "audio_start": "<audio_start>",
    "text_start": "<text_start>",
    "text_end": "<text_end>",
}

Part = str | list[int]
"""A stretch of a prompt: text still to be encoded, or ids that are ready."""


class TextEncoder(Protocol):
    """What a PromptBuilder needs of a tokenizer."""

    control: ControlIds
    vocabulary: SpeechVocabulary

    def encode(self, text: str, *, begins: bool = True) -> list[int]: ...


class SpeechTokenizer:
    """The tokenizer of a weights folder, for text that is nothing but text.

    control: the ids of the control pieces. vocabulary: where the audio ids lie. size: how many pieces there are.
    """

    def __init__(self, model: bytes, source: Path) -> None:
        proto = _parse(model, source)
        kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
        ids = {piece.piece: number for number, piece in enumerate(proto.pieces)}
        self.size = len(proto.pieces)
        self.control = _control_ids(ids, source)
        self.vocabulary = _vocabulary(ids, self.control.end_of_turn, source)
        # sentencepiece finds user-defined pieces (<audio_N> among them) in any text, but never control pieces.
        # As control pieces they keep their ids, and a user who types one gets its letters.
        for piece in proto.pieces:
            if piece.type == kinds.USER_DEFINED:
                piece.type = kinds.CONTROL
        self._first = _processor(proto, source)
        proto.normalizer_spec.add_dummy_prefix = False
        self._later = _processor(proto, source)

    @classmethod
    def load(cls, path: Path) -> SpeechTokenizer:
        """Return the tokenizer in the file ``path``; raises WeightsError when it is missing or damaged."""
        try:
            return cls(path.read_bytes(), path)
        except OSError as error:
            raise WeightsError(f"The tokenizer {path.name} in {path.parent} cannot be read: {error}.") from error

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Return the ids of ``text`` in ordinary pieces.

        begins: whether the text stands at the beginning of a stretch, where sentencepiece puts a space before it.
        """
        ids: list[int] = (self._first if begins else self._later).encode(text)
        return ids


class PromptBuilder:
    """Builds the ids of a request, in the layout that the weights were released with.

    markers: put ``<audio_start>`` after the last turn marker and wrap a clone's text in ``<text_start>`` and
    ``<text_end>``. Not official; some report more good takes with it.
    """

    def __init__(self, tokenizer: TextEncoder, layout: Layout, *, markers: bool = False) -> None:
        self._tokenizer = tokenizer
        self.layout = layout
        self._markers = markers

    @classmethod
    def load(cls, folder: Path, *, markers: bool = False) -> PromptBuilder:
        """Return the builder for a folder with tokenizer.model and tokenizer_config.json; raises WeightsError."""
        return cls(SpeechTokenizer.load(folder / TOKENIZER_FILE), layout_of(folder), markers=markers)

    def clone(self, transcript: str, prompt: SpeechTokens, text: str, reference: Waveform) -> list[int]:
        """Return the ids that ask for ``text`` in the voice of ``prompt``, which speaks ``transcript``.

        ``reference`` names the speaker in the legacy layout only (see speaker_id).
        """
        speaker = CURRENT_SPEAKER if self.layout == "current" else speaker_id(transcript, reference.samples)
        return self.clone_as(speaker, transcript, prompt, text)

    def clone_as(self, speaker: str, transcript: str, prompt: SpeechTokens, text: str) -> list[int]:
        """Return the ids of a clone under a speaker name of the caller's choice."""
        control = self._tokenizer.control
        described = f"{_CLONE_HEAD}speaker name: {speaker}\nspeaker prompt text: \n{transcript}\n"
        system: list[Part] = [described, "speaker audio tokens: \n", self._audio(prompt), "\n[speaker_end]\n"]
        user: list[Part] = [[control.text_start], text, [control.text_end]] if self._markers else [text]
        return self._conversation(system, [["human\n", *user]])

    def edit(self, task: Task, transcript: str, tokens: SpeechTokens, target: str | None = None) -> list[int]:
        """Return the ids that ask for ``task`` to be done to ``tokens``, which speak ``transcript``.

        target: the new text, for tasks that need one. Raises InvalidInput as tasks.instruction does.
        """
        return self.instruct(tasks.instruction(task, transcript, target), tokens)

    def instruct(self, instruction: str, tokens: SpeechTokens) -> list[int]:
        """Return the ids of an edit whose instruction is already written."""
        user: list[Part] = [f"{instruction}\n", self._audio(tokens), "\n"]
        # The legacy code encoded an edit's text (but not a clone's) apart from the turn's head.
        apart = self.layout == "legacy"
        return self._conversation([_EDIT_SYSTEM], [["human\n"], user] if apart else [["human\n", *user]])

    def shared(self, ids: list[int]) -> int:
        """Return how many ids at the beginning of a prompt are its system turn: what a voice's requests share.

        Text cannot bring an end of turn with it, so the first one ends the system turn.
        """
        return ids.index(self._tokenizer.control.end_of_turn) + 1

    def _conversation(self, system: list[Part], user: list[list[Part]]) -> list[int]:
        """Return the whole prompt. ``user``: the stretches of the user's turn, each encoded by itself."""
        control = self._tokenizer.control
        # Every separate encode() call of the legacy code put a begin id before its text.
        begin = [control.begin] if self.layout == "legacy" else []
        turn = [control.begin_of_turn, *begin]
        ids = [control.begin, *turn, *self._encode(["system\n", *system])]
        ids += [control.end_of_turn, *turn, *self._encode(user[0])]
        for stretch in user[1:]:
            ids += [*begin, *self._encode(stretch)]
        ids += [control.end_of_turn, *turn, *self._encode(["assistant\n"])]
        return [*ids, control.audio_start] if self._markers else ids

    def _encode(self, parts: list[Part]) -> list[int]:
        """Return the ids of a stretch; neighbouring texts are encoded as one, and only the first as a beginning."""
        ids: list[int] = []
        text = ""
        for part in parts:
            if isinstance(part, str):
                text += part
            elif part:
                ids += [*self._tokenizer.encode(text, begins=not ids), *part]
                text = ""
        return [*ids, *self._tokenizer.encode(text, begins=not ids)]

    def _audio(self, tokens: SpeechTokens) -> list[int]:
        ids: list[int] = self._tokenizer.vocabulary.ids(tokens.numbers).tolist()
        return ids


def speaker_id(transcript: str, samples: FloatArray) -> str:
    """Return the speaker name of the legacy layout: "clone_" and 16 hex digits of transcript and float32 samples.

    ``samples`` as loaded, channels flattened one after the other; of more than 2000 only both ends count.
    """
    wave = np.ascontiguousarray(samples, dtype=np.float32).reshape(-1)
    if len(wave) > 2 * _SPEAKER_EDGE:
        wave = np.concatenate([wave[:_SPEAKER_EDGE], wave[-_SPEAKER_EDGE:]])
    return f"clone_{hashlib.sha256(transcript.encode() + wave.tobytes()).hexdigest()[:16]}"


def layout_of(folder: Path) -> Layout:
    """Return the prompt layout of a weights folder: "current" when tokenizer_config.json has a chat template.

    Raises WeightsError when that file is missing or damaged.
    """
    path = folder / TOKENIZER_CONFIG_FILE
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"The file {path.name} in {folder} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise WeightsError(f"The file {path.name} in {folder} is damaged: it holds no table of settings.")
    return "current" if config.get("chat_template") else "legacy"


def _parse(model: bytes, source: Path) -> sentencepiece_model_pb2.ModelProto:
    try:
        proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    except DecodeError as error:
        raise WeightsError(f"The tokenizer {source.name} in {source.parent} is damaged: {error}.") from error
    if not proto.pieces:
        raise WeightsError(f"The tokenizer {source.name} in {source.parent} is damaged: it holds no pieces.")
    return proto


def _processor(proto: sentencepiece_model_pb2.ModelProto, source: Path) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    except RuntimeError as error:
        raise WeightsError(f"The tokenizer {source.name} in {source.parent} is damaged: {error}.") from error


def _control_ids(ids: dict[str, int], source: Path) -> ControlIds:
    missing = [piece for piece in _CONTROL_PIECES.values() if piece not in ids]
    if missing:
        raise WeightsError(f"The tokenizer {source.name} in {source.parent} lacks {', '.join(missing)}.")
    return ControlIds(**{name: ids[piece] for name, piece in _CONTROL_PIECES.items()})


def _vocabulary(ids: dict[str, int], end: int, source: Path) -> SpeechVocabulary:
    linguistic = _run(ids, LINGUISTIC_CODES, start=0)
    semantic = _run(ids, SEMANTIC_CODES, start=LINGUISTIC_CODES)
    if not linguistic or not semantic:
        raise WeightsError(f"The tokenizer {source.name} in {source.parent} lacks the pieces <audio_N> of speech.")
    return SpeechVocabulary(linguistic, semantic, end)


def _run(ids: dict[str, int], most: int, *, start: int) -> range:
    """Return the ids of ``<audio_N>`` for N = start, start + 1, ... as far as they follow each other."""
    first = ids.get(f"<audio_{start}>", -1)
    count = 0
    while first >= 0 and count < most and ids.get(f"<audio_{start + count}>") == first + count:
        count += 1
    return range(first, first + count)
