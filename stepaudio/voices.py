"""Saved voices: a reference with its words and notes, kept under a name, in a folder that several processes may use.

Each voice is one file, ``<id>.zip``, with two members that are stored as they are, uncompressed:

    voice.json   format, name, transcript, language, consent, seconds, created
    voice.wav    the sound, float32, bit for bit the samples that were given

The same file is what ``export`` hands out and ``read_export`` takes in. It is written whole beside the voices and then
renamed, so that a kill leaves no half voice. A file that is damaged or foreign costs that voice and a warning.
"""

from __future__ import annotations

import io
import json
import logging
import math
import os
import re
import secrets
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from stepaudio import text as texts
from stepaudio.audiofile import encode_float_wav
from stepaudio.errors import Busy, InvalidInput, NotFound, StepAudioError
from stepaudio.files import write_whole
from stepaudio.locks import ProcessLock
from stepaudio.settings import Settings
from stepaudio.types import Waveform

log = logging.getLogger(__name__)

VOICES = "voices"
FORMAT_VERSION = 1
NOTES, SOUND = "voice.json", "voice.wav"
MAX_NAME, MAX_LANGUAGE, MAX_CONSENT = 80, 40, 500
# 30 s at 384 kHz, the largest reference there is by default, make 46 MB.
MAX_VOICE_BYTES = 64 * 2**20
MAX_NOTES_BYTES = 64 * 2**10
LOCK_SECONDS = 10.0

_ID = re.compile(r"[0-9a-f]{16}")
_FILE = re.compile(r"[0-9a-f]{16}\.zip")
# What a ZIP file that is not ours makes zipfile and json raise.
_DAMAGE = (InvalidInput, zipfile.BadZipFile, ValueError, KeyError, TypeError, EOFError, RuntimeError, struct.error)


@dataclass(frozen=True)
class VoiceDraft:
    """A voice before it is saved. audio: the bytes of a sound file. consent: who agreed to what, and when."""

    audio: bytes
    name: str
    transcript: str
    language: str = ""
    consent: str = ""


@dataclass(frozen=True)
class Voice:
    """What is known of a saved voice. id: 16 hex digits, drawn by us. created: UTC, ISO 8601."""

    id: str
    name: str
    transcript: str
    language: str
    consent: str
    seconds: float
    created: str


@dataclass(frozen=True)
class VoiceLimits:
    """How much a folder of voices may hold; the fields are those of Settings."""

    max_voices: int = 200
    max_bytes: int = 2**30
    max_transcript_characters: int = 1000


class VoiceFolder:
    """The saved voices below one folder, which is made when the first one is saved."""

    def __init__(self, folder: Path, limits: VoiceLimits = VoiceLimits()) -> None:
        self.folder = folder
        self.limits = limits
        self._told: set[Path] = set()
        self._reserved: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings) -> VoiceFolder:
        """Return the folder that the settings name, within their limits."""
        limits = VoiceLimits(settings.max_voices, settings.voices_megabytes * 2**20, settings.max_transcript_characters)
        return cls(settings.data_dir / VOICES, limits)

    def reserve(self, names: Iterable[str]) -> None:
        """Refuse these names to voices that are saved or renamed from now on: other voices are known by them."""
        self._reserved = frozenset(name.casefold() for name in names)

    def cleaned(self, draft: VoiceDraft) -> VoiceDraft:
        """Return the draft with its texts as they will be saved.

        Raises InvalidInput for a text that cannot be saved, and for a name that another voice has.
        """
        words = "The transcript of the reference"
        return replace(
            draft,
            name=self._own_name(draft.name),
            transcript=texts.clean(draft.transcript, what=words, limit=self.limits.max_transcript_characters),
            language=_line(draft.language, "The language of the voice", MAX_LANGUAGE),
            consent=_line(draft.consent, "The consent note", MAX_CONSENT),
        )

    def save(self, draft: VoiceDraft, waveform: Waveform) -> Voice:
        """Save ``waveform``, the sound kept of the draft's audio, under a new id, and return the voice.

        Raises InvalidInput for texts that cannot be saved and where the folder's limits are reached, StepAudioError
        where it cannot be written.
        """
        draft = self.cleaned(draft)
        voice = Voice(
            secrets.token_hex(8),
            draft.name,
            draft.transcript,
            draft.language,
            draft.consent,
            round(waveform.seconds, 3),
            datetime.now(UTC).isoformat(timespec="seconds"),
        )
        data = _pack(voice, encode_float_wav(waveform))
        if len(data) > MAX_VOICE_BYTES:
            raise InvalidInput(f"The voice has {len(data) / 2**20:.1f} MB; the limit is {MAX_VOICE_BYTES >> 20} MB.")
        with self._writing():
            self._own_name(voice.name)
            self._check_room(len(data))
            write_whole(self._path(voice.id), data)
        return voice

    def list(self) -> tuple[Voice, ...]:
        """Return all voices, by name; a file that cannot be used is left out, with one warning."""
        voices = []
        for path in self._files():
            try:
                voices.append(self._read(path)[0])
            except (OSError, *_DAMAGE) as error:
                if path not in self._told:
                    self._told.add(path)
                    log.warning("The saved voice %s cannot be used: %s.", path, _reason(error))
        return tuple(sorted(voices, key=lambda voice: (voice.name.casefold(), voice.id)))

    def get(self, voice_id: str) -> Voice:
        """Return the voice of this id; raises InvalidInput where there is none that can be used."""
        return self.load(voice_id)[0]

    def find(self, name_or_id: str) -> Voice:
        """Return the voice of this id, or of this name in any case; raises InvalidInput for none, or for several."""
        if _ID.fullmatch(name_or_id) and self._path(name_or_id).exists():
            return self.get(name_or_id)
        voices = self.list()
        named = [voices[number] for number in texts.called(name_or_id, [voice.name for voice in voices])]
        if not named:
            raise NotFound(f"There is no saved voice {name_or_id!r}.")
        if len(named) > 1:
            ids = ", ".join(voice.id for voice in named)
            raise InvalidInput(
                f"{len(named)} saved voices are called {name_or_id!r}; please give one of the ids: {ids}."
            )
        return named[0]

    def load(self, voice_id: str) -> tuple[Voice, bytes]:
        """Return a voice and its sound as a WAV file; raises InvalidInput as get does."""
        path = self._path(voice_id)
        try:
            return self._read(path, with_sound=True)
        except FileNotFoundError as error:
            raise NotFound(f"There is no saved voice {voice_id!r}.") from error
        except (OSError, *_DAMAGE) as error:
            raise InvalidInput(f"The saved voice {voice_id!r} cannot be used: {_reason(error)}.") from error

    def rename(self, voice_id: str, name: str) -> Voice:
        """Give a voice another name, and return it. Raises as get and save do."""
        with self._writing():
            name = self._own_name(name, voice_id)
            voice, wav = self.load(voice_id)
            voice = replace(voice, name=name)
            write_whole(self._path(voice.id), _pack(voice, wav))
        return voice

    def delete(self, voice_id: str) -> None:
        """Remove a voice, usable or not; raises InvalidInput where there is none of this id."""
        path = self._path(voice_id)
        with self._writing():
            if not path.is_file():
                raise NotFound(f"There is no saved voice {voice_id!r}.")
            path.unlink()

    def export(self, voice_id: str) -> bytes:
        """Return a voice as one file for read_export; its id is not in it. Raises InvalidInput as get does."""
        return _pack(*self.load(voice_id))

    def _path(self, voice_id: str) -> Path:
        if not _ID.fullmatch(voice_id):
            raise NotFound(f"There is no saved voice {voice_id!r}.")
        return self.folder / f"{voice_id}.zip"

    def _files(self) -> tuple[Path, ...]:
        """Return the files that are voices by their names; others are nobody's business here."""
        try:
            return tuple(sorted(path for path in self.folder.iterdir() if _FILE.fullmatch(path.name)))
        except FileNotFoundError:
            return ()
        except OSError as error:
            log.warning("The saved voices in %s cannot be listed: %s.", self.folder, _reason(error))
            return ()

    def _read(self, path: Path, *, with_sound: bool = False) -> tuple[Voice, bytes]:
        """Return the voice in a file, and its sound where it is asked for. Raises OSError or one of _DAMAGE."""
        # Not blocking, because what lies there may be anything, a pipe too.
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ValueError("it is not a file")
            notes, wav = _unpack(file, found.st_size, with_sound=with_sound)
        return Voice(id=path.stem, **notes), wav

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the folder's lock, so that two writers never undo each other; what a killed one left is removed."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with ProcessLock(self.folder / "lock", LOCK_SECONDS) as lock:
                if lock.waited and not lock.held:
                    raise Busy("Another program is changing the saved voices; please try again in a minute.")
                for left in self.folder.glob(".*.part") if lock.held else ():
                    left.unlink(missing_ok=True)
                yield
        except OSError as error:
            raise StepAudioError(f"The saved voices in {self.folder} cannot be changed: {_reason(error)}.") from error

    def _own_name(self, name: str, voice_id: str = "") -> str:
        """Return the name as it is saved; raises InvalidInput where it is none, or another voice is known by it.

        voice_id: the voice that may have it already. Voices are asked for by name, so each has one of its own.
        """
        name = _line(name, "The name of the voice", MAX_NAME, needed=True)
        if name.casefold() in self._reserved:
            raise InvalidInput(f"{name!r} is a voice that came with the weights; please choose another name.")
        if any(voice.name.casefold() == name.casefold() and voice.id != voice_id for voice in self.list()):
            raise InvalidInput(
                f"There is a saved voice {name!r} already; please choose another name, or rename that one."
            )
        return name

    def _check_room(self, size: int) -> None:
        sizes = [path.lstat().st_size for path in self._files()]
        if len(sizes) >= self.limits.max_voices:
            raise InvalidInput(f"There are {len(sizes)} saved voices, which is the limit; please remove one first.")
        if sum(sizes) + size > self.limits.max_bytes:
            raise InvalidInput(
                f"The saved voices have {sum(sizes) / 2**20:.0f} MB and this one {size / 2**20:.1f} MB; the limit is "
                f"{self.limits.max_bytes / 2**20:.0f} MB in all; please remove one first."
            )


def read_export(data: bytes) -> VoiceDraft:
    """Return what an exported voice holds, to be saved anew; raises InvalidInput for anything else.

    The sound is not looked at here: it goes the way of every uploaded file.
    """
    if len(data) > MAX_VOICE_BYTES:
        raise InvalidInput(f"The file has {len(data) / 2**20:.1f} MB; the limit is {MAX_VOICE_BYTES >> 20} MB.")
    try:
        notes, wav = _unpack(io.BytesIO(data), len(data), with_sound=True)
    except _DAMAGE as error:
        raise InvalidInput(f"The file is not a voice that stepaudio has exported: {_reason(error)}.") from error
    return VoiceDraft(wav, notes["name"], notes["transcript"], notes["language"], notes["consent"])


def _pack(voice: Voice, wav: bytes) -> bytes:
    notes = {"format": FORMAT_VERSION, **asdict(voice)}
    del notes["id"]
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        # ZipInfo by itself has a fixed date, so that the same voice gives the same bytes.
        archive.writestr(zipfile.ZipInfo(NOTES), json.dumps(notes, ensure_ascii=False, indent=1))
        archive.writestr(zipfile.ZipInfo(SOUND), wav)
    return target.getvalue()


def _unpack(file: IO[bytes], size: int, *, with_sound: bool) -> tuple[dict[str, Any], bytes]:
    """Return the checked notes of a voice's file, and its sound, b"" where that is not asked for.

    Members that are stored uncompressed cannot become larger than the file; other members are refused, as are other
    names, so nothing is ever unpacked to a place that the file chooses. Raises one of _DAMAGE.
    """
    if size > MAX_VOICE_BYTES:
        raise ValueError("it is too large")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if [member.filename for member in members] != [NOTES, SOUND]:
            raise ValueError(f"it does not hold {NOTES} and {SOUND} alone")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or not member.compress_size == member.file_size <= size:
                raise ValueError(f"its {member.filename} is compressed")
        if members[0].file_size > MAX_NOTES_BYTES:
            raise ValueError(f"its {NOTES} is too large")
        notes = _checked(json.loads(archive.read(members[0])))
        return notes, archive.read(members[1]) if with_sound else b""


def _checked(notes: Any) -> dict[str, Any]:
    """Return the notes without their format, every field of the kind and length that save gives it."""
    kinds = {"format": int, "name": str, "transcript": str, "language": str, "consent": str, "seconds": float}
    if not isinstance(notes, dict) or set(notes) != {*kinds, "created"}:
        raise ValueError(f"its {NOTES} has other fields")
    if notes["format"] != FORMAT_VERSION:
        raise ValueError(f"it has the format {notes['format']!r}, and this program reads {FORMAT_VERSION}")
    for name, kind in kinds.items():
        if type(notes[name]) is not kind:
            raise ValueError(f"its {name} is not of the right kind")
    for name, most in (("name", MAX_NAME), ("language", MAX_LANGUAGE), ("consent", MAX_CONSENT)):
        if notes[name] != _line(notes[name], name, most, needed=name == "name"):
            raise ValueError(f"its {name} has characters that it cannot have")
    if notes["transcript"] != texts.clean(notes["transcript"], what="transcript", limit=MAX_NOTES_BYTES):
        raise ValueError("its transcript has characters that it cannot have")
    if not (math.isfinite(notes["seconds"]) and notes["seconds"] > 0):
        raise ValueError("its length is no length")
    created = datetime.fromisoformat(notes["created"])
    del notes["format"]
    return {**notes, "created": created.isoformat(timespec="seconds")}


def _line(value: str, what: str, limit: int, *, needed: bool = False) -> str:
    """Return a text as one line that cannot disturb what stands beside it; raises InvalidInput for a longer one."""
    kept = texts.one_line(value)
    if len(kept) > limit:
        raise InvalidInput(f"{what} has {len(kept)} characters; the limit is {limit}.")
    if needed and not kept:
        raise InvalidInput(f"{what} is empty.")
    return kept


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(".") or type(error).__name__
