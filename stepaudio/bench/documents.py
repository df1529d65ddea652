"""The files that a measurement renews: its JSON, Markdown and picture, the two answers, the README's tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from stepaudio.bench import readme
from stepaudio.bench.answer import Results, answer
from stepaudio.bench.parts import unfinished
from stepaudio.bench.words import Language
from stepaudio.errors import InvalidInput

BENCHMARKS, DOCS, README = "benchmarks", "docs", "README.md"
SUITE, FULL_SIZE = "suite", "full-size"
ANSWERS: Mapping[Language, str] = {"en": "ANSWER.md", "zh": "ANSWER.zh.md"}


def check(root: Path) -> None:
    """Raise InvalidInput where ``root`` is not a checkout whose documents can be renewed."""
    if not (root / README).is_file() or not (root / BENCHMARKS).is_dir():
        raise InvalidInput(f"{root} holds no {README} beside {BENCHMARKS}/: --write is for the repository's folder.")


def write_results(results: Results, folder: Path, name: str) -> None:
    """Write ``name``.json, .md and .png into ``folder``."""
    from stepaudio.bench.chart import draw

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(answer(results, "en"), encoding="utf-8")
    draw(results, folder / f"{name}.png")


def renew(root: Path) -> None:
    """Write the answers and the README's tables anew from the JSON files under ``root``."""
    for path, text in renewed(root).items():
        path.write_text(text, encoding="utf-8")


def renewed(root: Path) -> dict[Path, str]:
    """Return what the documents should say, by their paths."""
    results, full = measured(root)
    texts = {root / DOCS / name: answer(results, language, full) for language, name in ANSWERS.items()}
    readme_path = root / README
    return {**texts, readme_path: filled(readme_path.read_text(encoding="utf-8"), readme.blocks(results, full))}


def measured(root: Path) -> tuple[Results, Results | None]:
    """Return the results of the suite and those at full size: all, or what an unfinished measurement has, or None."""
    results = _read(root, SUITE)
    if results is None:
        raise InvalidInput(f"There is no {SUITE}.json in {root / BENCHMARKS}: run the bench without --full-size first.")
    full = _read(root, FULL_SIZE)
    if full is None:
        record = _read(root, f"{FULL_SIZE}.parts")
        full = unfinished(record) if record else None
    return results, full


def filled(text: str, parts: Mapping[str, str]) -> str:
    """Return the text with the generated parts of these names exchanged.

    Raises InvalidInput for a name that does not stand there exactly once.
    """
    for name, part in parts.items():
        pattern = rf"(<!-- generated: {re.escape(name)} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, partial(_around, part), text, flags=re.DOTALL)
        if count != 1:
            raise InvalidInput(f"The text has {count} generated parts named {name}.")
    return text


def _around(part: str, match: re.Match[str]) -> str:
    return match[1] + part + match[2]


def _read(root: Path, name: str) -> Results | None:
    path = root / BENCHMARKS / f"{name}.json"
    if not path.is_file():
        return None
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    return results
