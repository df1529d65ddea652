"""The README's figures: the short form of the answer."""

from __future__ import annotations

from stepaudio.bench import answer
from stepaudio.bench.answer import Results
from stepaudio.bench.words import Language


def blocks(results: Results) -> dict[str, str]:
    """Return the generated parts of the README's section on speed by their names."""
    language: Language = "en"
    parts = {
        "speed-conditions": answer.conditions(results, language),
        "speed-clones": answer.report_table(results, language),
        "speed-targets": answer.target_table(results, language),
        "speed-stages": answer.stage_table(results, language),
        "speed-switches": answer.switch_table(results, language),
        "speed-live": answer.live(results, language),
        "speed-decode": answer.decoding(results, language),
        "speed-encoder": answer.encoder_table(results, language),
    }
    return {name: "\n".join(lines).rstrip() + "\n" for name, lines in parts.items()}
