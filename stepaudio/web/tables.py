"""What the page shows besides its fields: the stage table, the cache's figures, the banners."""

from __future__ import annotations

from html import escape

from stepaudio.cache import CacheStats
from stepaudio.service import Service
from stepaudio.types import Stage, Synthesis
from stepaudio.web.sentences import in_language
from stepaudio.web.strings import Language, say


def run_report(synthesis: Synthesis, language: Language) -> str:
    """Return what the page says of one run, as HTML: notices, summary, cache line, stage table."""
    summary = say(
        language,
        "summary",
        seconds=synthesis.waveform.seconds,
        total=synthesis.timings.total,
        rtf=synthesis.rtf,
        seed=synthesis.seed,
        stopped=say(language, f"stopped_{synthesis.stopped}"),
    )
    notices = [in_language(notice, language) for notice in synthesis.notices]
    sentences = [*notices, summary]
    if synthesis.first_sound is not None:
        sentences.append(say(language, "first_sound", seconds=synthesis.first_sound))
    sentences.append(say(language, "hit" if synthesis.cache_hit else "miss"))
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return f'<div class="stepaudio-run">{paragraphs}{stage_table(synthesis, language)}</div>'


def stage_table(synthesis: Synthesis, language: Language) -> str:
    """Return the stages of a run as an HTML table; children are indented, the share is drawn as a bar."""
    total = synthesis.timings.total

    def head(key: str, hint: str = "") -> str:
        title = f' title="{escape(say(language, hint))}"' if hint else ""
        return f'<th scope="col"{title}>{escape(say(language, key))}</th>'

    def row(stage: Stage, depth: int) -> str:
        share = 100 * stage.seconds / total if total > 0 else 0.0
        busy = f"{stage.busy:.3f}" if stage.busy is not None else ""
        return (
            f'<tr class="depth-{depth}"><th scope="row">{escape(stage.name)}</th><td>{stage.seconds:.3f}</td>'
            f'<td class="share"><span style="width:{share:.1f}%"></span>{share:.1f}%</td>'
            f"<td>{busy}</td><td>{escape(stage.note)}</td></tr>"
        ) + "".join(row(child, depth + 1) for child in stage.children)

    heads = head("stage") + head("seconds") + head("share") + head("busy", "busy_hint") + head("note")
    rows = "".join(row(stage, 0) for stage in synthesis.timings.stages)
    last = f'<tr><th scope="row">{escape(say(language, "total"))}</th><td>{total:.3f}</td><td colspan="3"></td></tr>'
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody><tfoot>{last}</tfoot></table>"


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
        sentences.append(in_language(stats.problem, language))
    return "\n\n".join(f"⚠️ {sentence}" for sentence in sentences)


def weights_line(service: Service, language: Language) -> str:
    """Return which weights run, and where."""
    engine = service.engine
    if engine is None:
        return ""
    folder = engine.weights
    return say(language, "weights", title=folder.card.title, path=folder.path.name, summary=engine.summary)
