"""Markdown of the page: the stage table, the cache's figures, the banners."""

from __future__ import annotations

from stepaudio.cache import CacheStats
from stepaudio.service import Service
from stepaudio.types import Stage, Synthesis
from stepaudio.web.strings import Language, say


def run_report(synthesis: Synthesis, language: Language) -> str:
    """Return what the page says of one run: summary, cache line, stage table, notices."""
    summary = say(
        language,
        "summary",
        seconds=synthesis.waveform.seconds,
        total=synthesis.timings.total,
        rtf=synthesis.rtf,
        seed=synthesis.seed,
        stopped=say(language, f"stopped_{synthesis.stopped}"),
    )
    parts = [*synthesis.notices, summary, say(language, "hit" if synthesis.cache_hit else "miss")]
    return "\n\n".join([*parts, stage_table(synthesis, language)])


def stage_table(synthesis: Synthesis, language: Language) -> str:
    """Return the stages of a run as a Markdown table; children are indented, busy seconds have a column."""
    total = synthesis.timings.total
    heads = [say(language, key) for key in ("stage", "seconds", "share", "busy", "note")]
    lines = ["| " + " | ".join(heads) + " |", "|---|---:|---:|---:|---|"]

    def add(stage: Stage, depth: int) -> None:
        name = "&nbsp;" * 4 * depth + stage.name
        busy = f"{stage.busy:.3f}" if stage.busy is not None else ""
        share = f"{100 * stage.seconds / total:.1f}%" if total > 0 else ""
        lines.append(f"| {name} | {stage.seconds:.3f} | {share} | {busy} | {stage.note} |")
        for child in stage.children:
            add(child, depth + 1)

    for stage in synthesis.timings.stages:
        add(stage, 0)
    lines.append(f"| **{say(language, 'total')}** | **{total:.3f}** | 100% | | |")
    return "\n".join(lines)


def cache_report(stats: CacheStats | None, language: Language) -> str:
    """Return the cache's figures as one line."""
    if stats is None:
        return ""
    if not stats.enabled:
        return say(language, "cache_off")
    return say(
        language,
        "cache_stats",
        hits=stats.hits,
        misses=stats.misses,
        entries=stats.entries,
        megabytes=stats.bytes / 2**20,
        saved=stats.seconds_saved,
    )


def banners(service: Service, stats: CacheStats | None, language: Language) -> str:
    """Return what the user must know before starting: loading, a failed start, noise weights, a sick cache."""
    sentences = []
    if service.state == "loading":
        sentences.append(say(language, "loading"))
    if service.problem:
        sentences.append(service.problem)
    engine = service.engine
    if engine is not None:
        notice = engine.weights.card.notice
        if notice:
            sentences.append(notice.get(language, notice.get("en", "")))
    if stats is not None and stats.problem:
        sentences.append(stats.problem)
    return "\n\n".join(f"⚠️ {sentence}" for sentence in sentences)


def weights_line(service: Service, language: Language) -> str:
    """Return which weights run, and where."""
    engine = service.engine
    if engine is None:
        return ""
    folder = engine.weights
    return say(language, "weights", title=folder.card.title, path=folder.path.name, summary=engine.summary)
