"""Voices that come with the weights: ``presets/NAME.json`` in a weights folder, its sound beside it.

    {"name": "Ada", "transcript": "The words that are spoken in the sound.", "language": "en"}

The sound is ``NAME.flac`` or ``NAME.wav``. A preset that cannot be used costs that preset and a warning.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from stepaudio.errors import InvalidInput, NotFound
from stepaudio.text import called

log = logging.getLogger(__name__)

PRESETS = "presets"
ENDINGS = (".flac", ".wav")
MAX_NOTES_BYTES = 64 * 2**10
MAX_SOUND_BYTES = 64 * 2**20

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Preset:
    """What is known of a preset voice. id: the name of its files without their ending."""

    id: str
    name: str
    transcript: str
    language: str


class PresetFolder:
    """The preset voices of one weights folder, none where there is no folder.

    It is read once: what lies there does not change while we run.
    """

    def __init__(self, weights: Path | None) -> None:
        self._sounds: dict[str, Path] = {}
        self._presets: dict[str, Preset] = {}
        for path in sorted((weights / PRESETS).glob("*.json")) if weights is not None else ():
            try:
                self._add(path)
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("The preset voice %s cannot be used: %s.", path, error)

    def list(self) -> tuple[Preset, ...]:
        """Return the presets, by the names of their files."""
        return tuple(self._presets.values())

    def load(self, preset_id: str) -> tuple[Preset, bytes]:
        """Return a preset and the bytes of its sound file; raises InvalidInput where there is none that can be read."""
        preset = self._presets.get(preset_id)
        if preset is None:
            raise NotFound(f"There is no preset voice {preset_id!r}.")
        try:
            return preset, self._sounds[preset_id].read_bytes()
        except OSError as error:
            raise InvalidInput(f"The preset voice {preset.name!r} cannot be read: {error.strerror}.") from error

    def find(self, name_or_id: str) -> tuple[Preset, bytes]:
        """Return the first preset of this id, or of this name in any case, as load() does; raises NotFound for none."""
        if name_or_id in self._presets:
            return self.load(name_or_id)
        presets = self.list()
        named = called(name_or_id, [preset.name for preset in presets])
        return self.load(presets[named[0]].id if named else name_or_id)

    def names(self) -> tuple[str, ...]:
        """Return all by which presets are known: their ids and their names."""
        return tuple(name for preset in self.list() for name in (preset.id, preset.name))

    def _add(self, path: Path) -> None:
        if not _ID.fullmatch(path.stem):
            raise ValueError("its name may hold letters, digits, dots, dashes and underscores only")
        if path.stat().st_size > MAX_NOTES_BYTES:
            raise ValueError("it is too large")
        notes = json.loads(path.read_text(encoding="utf-8"))
        values = {name: notes[name] for name in ("name", "transcript", "language")}
        if not all(isinstance(value, str) and value.strip() for value in values.values()):
            raise ValueError("name, transcript and language must be texts that are not empty")
        sound = next((found for end in ENDINGS if (found := path.with_suffix(end)).is_file()), None)
        if sound is None:
            raise ValueError(f"there is no {path.stem}{ENDINGS[0]} or {ENDINGS[1]} beside it")
        if sound.stat().st_size > MAX_SOUND_BYTES:
            raise ValueError(f"{sound.name} is too large")
        self._sounds[path.stem] = sound
        self._presets[path.stem] = Preset(path.stem, **values)
