"""One mapping of ``cosyvoice.yaml`` at a time, read strictly: every value is asked for by name and kind.

What is wrong is said in one sentence that names the file, its folder and the key. Classes that the yaml names
after ``!new:`` are never looked up.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import yaml

from stepaudio.errors import WeightsError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tagged:
    """A mapping under a ``!new:`` tag, as parsed: the last part of the tag and the values."""

    name: str
    values: dict[str, object]


class Section:
    """One mapping of the yaml. Every read takes its key away, so that what is left at the end is unknown."""

    def __init__(self, path: Path, where: str, values: dict[str, object]) -> None:
        self._path, self._where, self._left = path, where, dict(values)
        self._names = (path.name, path.parent)

    def refuse(self, problem: str) -> NoReturn:
        raise WeightsError(f"{self._path.name} in {self._path.parent} cannot be used: {problem}.")

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str) -> object:
        if key not in self._left:
            self.refuse(f"'{self._where}{key}' is missing")
        return self._left.pop(key)

    def integer(self, key: str, least: int = 1) -> int:
        value = self.take(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.refuse(f"'{self._where}{key}' must be a whole number of at least {least}, not {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.take(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            self.refuse(f"'{self._where}{key}' must be a number, not {value!r}")
        return float(value)

    def integers(self, key: str) -> tuple[int, ...]:
        return self._as_integers(key, self.take(key))

    def table(self, key: str) -> tuple[tuple[int, ...], ...]:
        value = self.take(key)
        if not isinstance(value, list) or not value:
            self.refuse(f"'{self._where}{key}' must be a list of lists, not {value!r}")
        return tuple(self._as_integers(key, row) for row in value)

    def _as_integers(self, key: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, list) or not value or not all(type(n) is int and n > 0 for n in value):
            self.refuse(f"'{self._where}{key}' must be a list of positive whole numbers, not {value!r}")
        return tuple(value)

    def fixed(self, key: str, *only: object, optional: bool = False) -> None:
        """Take a key of which one meaning alone is built, in any of its spellings."""
        if optional and key not in self:
            return
        value = self.take(key)
        if value not in only:
            self.refuse(f"'{self._where}{key}' is {value!r}, but only {only[0]!r} is supported")

    def skip(self, *keys: str) -> None:
        """Take keys that mean nothing at inference, if they are there."""
        for key in keys:
            self._left.pop(key, None)

    def mapping(self, key: str, *, tag_allowed: bool = False) -> Section:
        """Take a mapping, which may stand under some !new: tag if so said."""
        value = self.take(key)
        if tag_allowed and isinstance(value, Tagged):
            value = value.values
        if not isinstance(value, dict):
            self.refuse(f"'{self._where}{key}' must be a mapping, not {value!r}")
        return Section(self._path, f"{self._where}{key}.", value)

    def class_name(self, key: str) -> str:
        """Return the class that the mapping of a key names after ``!new:``, and leave the key there."""
        value = self._left.get(key)
        if not isinstance(value, Tagged):
            if key in self._left:
                self.refuse(f"'{self._where}{key}' must be a mapping under a !new: tag")
            self.refuse(f"'{self._where}{key}' is missing")
        return value.name

    def tagged(self, key: str, name: str) -> Section:
        """Take a mapping under ``!new:``, whose class must be ``name``."""
        named = self.class_name(key)
        self.require(named == name, f"'{self._where}{key}' names {named}, but only {name} is supported")
        return self.mapping(key, tag_allowed=True)

    def require(self, holds: bool, problem: str) -> None:
        if not holds:
            self.refuse(problem)

    def finish(self) -> None:
        """Tell of keys that nothing here reads. Not an error: a release may note things that change no network."""
        for key in self._left:
            log.warning("%s in %s: '%s%s' is not known and is ignored.", *self._names, self._where, key)


def read_section(path: Path) -> Section:
    """Return the top mapping of a yaml file; raises WeightsError for a file that is missing or holds none."""

    class Loader(yaml.SafeLoader):
        """SafeLoader that keeps the name after ``!new:`` beside the mapping."""

    def tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Tagged:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "!new: stands before no mapping", node.start_mark)
        return Tagged(suffix.rpartition(".")[2], loader.construct_mapping(node, deep=True))

    Loader.add_multi_constructor("!new:", tagged)
    try:
        text = path.read_text(encoding="utf-8")
        # Loader is a SafeLoader: it builds plain values and Tagged, nothing that the file could name.
        values = yaml.load(text, Loader=Loader)
    except FileNotFoundError as error:
        raise WeightsError(f"{path.name} is missing in {path.parent}.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise WeightsError(f"{path.name} in {path.parent} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path.name} in {path.parent} cannot be used: it holds no mapping.")
    return Section(path, "", values)
