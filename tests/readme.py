"""The generated parts of README.md: ``python -m tests.readme`` writes them anew, and the answers under docs/ too."""

from __future__ import annotations

from stepaudio.bench import readme
from stepaudio.bench.documents import filled, measured, renew
from stepaudio.settings import markdown_table
from tests.conftest import ROOT

README = ROOT / "README.md"


def generated() -> dict[str, str]:
    """Return the text of each generated part by its name."""
    return {"settings": markdown_table(), **readme.blocks(*measured(ROOT))}


def renewed(text: str) -> str:
    """Return the README with its generated parts made anew."""
    return filled(text, generated())


if __name__ == "__main__":
    renew(ROOT)
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
