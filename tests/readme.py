"""The generated parts of README.md: ``python -m tests.readme`` writes them anew, a test keeps them true."""

from __future__ import annotations

import json
import re
from typing import Any

from stepaudio.bench import decode, encode
from stepaudio.settings import markdown_table
from tests.conftest import ROOT

README = ROOT / "README.md"


def generated() -> dict[str, str]:
    """Return the text of each generated part by its name."""
    return {
        "settings": markdown_table(),
        "speed": encode.render(_results("encode")),
        "decode": decode.render(_results("decode")),
    }


def _results(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))


def renewed(text: str) -> str:
    """Return the README with its generated parts made anew."""
    for name, part in generated().items():
        pattern = rf"(<!-- generated: {name} -->\n).*?(<!-- end -->)"
        text, count = re.subn(pattern, lambda match, part=part: match[1] + part + match[2], text, flags=re.DOTALL)
        assert count == 1, f"the README has {count} parts named {name}"
    return text


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
