"""What the page shows besides its fields: the stage table, the cache's figures, the banners."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from stepaudio import tasks
from stepaudio.cache import CacheStats
from stepaudio.runs import RunSummary
from stepaudio.service import Service
from stepaudio.settings import Settings
from stepaudio.types import Stage, Synthesis
from stepaudio.variants import variants
from stepaudio.web.sentences import in_language
from stepaudio.web.strings import Language, say

DEFAULTS = (
    *("temperature", "top_k", "top_p", "repetition_rule", "flow_steps"),
    *("max_output_seconds", "max_text_characters"),
)


def run_report(synthesis: Synthesis, language: Language) -> str:
    """Return what the page says of one run, as HTML: notices, summary, cache line, stage table."""
    return f'{run_summary(synthesis, language)}<div class="stepaudio-run">{stage_table(synthesis, language)}</div>'


def run_summary(synthesis: Synthesis, language: Language) -> str:
    """Return what a user wants to know of one run, as HTML: notices, summary, first sound, cache line."""
    summary = say(
        language,
        "summary",
        seconds=synthesis.made_seconds,
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
    return f'<div class="stepaudio-summary">{paragraphs}</div>'


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
    """Return what the user must know before starting, as HTML: loading, a failed start, noise weights, a sick cache."""
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
    return "".join(f"<p>⚠️ {escape(sentence, quote=False)}</p>" for sentence in sentences)


def runs_table(summaries: Sequence[RunSummary], language: Language) -> str:
    """Return the last runs in numbers, as HTML: median, and behind it the 95th percentile."""
    if not summaries:
        return f'<p class="stepaudio-empty">{escape(say(language, "no_runs"))}</p>'

    def pair(values: tuple[float, float] | None, digits: int) -> str:
        return f"{values[0]:.{digits}f} / {values[1]:.{digits}f}" if values is not None else "–"

    heads = [say(language, key) for key in ("run_kind", "run_count", "run_total", "run_first", "run_rtf")]
    rows = [
        (
            f"{say(language, f'label_{each.label}')}, {say(language, 'run_hit' if each.hit else 'run_miss')}",
            str(each.count),
            pair(each.total, 2),
            pair(each.first_sound, 2),
            pair(each.rtf, 3),
        )
        for each in summaries
    ]
    return _table(heads, rows)


def parts_table(service: Service, language: Language) -> str:
    """Return what each part runs on and in which precision, as HTML."""
    engine = service.engine
    if engine is None:
        return f'<p class="stepaudio-empty">{escape(say(language, "loading_parts"))}</p>'
    runtime, encoder, settings = engine.runtime, engine.encoder, service.settings
    device, single = runtime.device.type.upper(), "float32" + (" (TF32)" if runtime.tf32 and runtime.on_gpu else "")
    rows = [
        ("Paraformer", f"{device}, {settings.linguistic_engine}", "float32"),
        ("S3 tokenizer", f"ONNX, {provider_of(encoder.semantic)}", "float32"),
        ("CAM++", f"ONNX, {provider_of(encoder.speaker)}", "float32"),
        (say(language, "part_lm"), device, engine.precision),
        (say(language, "part_vocoder"), device, single),
        (say(language, "part_asr"), service.transcriber.name or "–", ""),
    ]
    heads = [say(language, key) for key in ("part", "part_place", "part_precision")]
    return _table(heads, rows) + f'<p class="stepaudio-fine">{escape(engine.summary)}</p>'


def provider_of(encoder: object) -> str:
    """Return what an encoder of ONNX says that it runs with."""
    return str(getattr(encoder, "provider", "?"))


def weights_table(service: Service, language: Language) -> str:
    """Return which weights run, where they lie and why they were chosen, as HTML."""
    engine = service.engine
    if engine is None:
        return f'<p class="stepaudio-empty">{escape(service.problem or say(language, "loading"))}</p>'
    folder = engine.weights
    rows = [
        (say(language, "weights_title"), folder.card.title),
        (say(language, "weights_path"), str(folder.path)),
        (say(language, "weights_reason"), folder.reason),
        (say(language, "presets"), ", ".join(preset.name for preset in service.presets.list()) or "–"),
    ]
    notice = folder.card.notice.get(language, folder.card.notice.get("en", ""))
    told = f'<p class="stepaudio-note">{escape(notice)}</p>' if notice else ""
    return _table([], rows) + told


def tasks_table(service: Service, language: Language) -> str:
    """Return the tasks and which of them the weights have learnt, as HTML."""
    engine = service.engine
    if engine is None:
        return ""
    rows = [
        (
            say(language, f"task_{spec.name}"),
            say(language, "learnt" if engine.weights.card.knows(spec.name) else "not_learnt"),
            str(len(spec.options) or "–"),
        )
        for spec in tasks.TASKS.values()
    ]
    heads = [say(language, key) for key in ("task", "weights_title", "task_options")]
    return _table(heads, rows)


def variants_table(service: Service, language: Language) -> str:
    """Return the variants of the language model, which one runs, and why the others do not, as HTML."""
    engine = service.engine
    if engine is None:
        return ""
    rows = [
        (
            each.title[language],
            say(language, "running" if each.running else "possible" if each.available else "not_possible"),
            each.reason[language],
        )
        for each in variants(engine.weights)
    ]
    return _table([say(language, key) for key in ("variant", "state", "note")], rows)


def defaults_table(settings: Settings, language: Language) -> str:
    """Return the defaults of a request, and the setting that changes each, as HTML."""
    rows = [(f"STEPAUDIO_{name.upper()}", str(getattr(settings, name))) for name in DEFAULTS]
    return _table([say(language, "setting"), say(language, "value")], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table as HTML, everything escaped; the first cell of a row is its heading."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(text)}</td>" for text in row[1:]) + "</tr>"
        for row in rows
    )
    top = f"<thead><tr>{head}</tr></thead>" if heads else ""
    return f'<div class="stepaudio-table" tabindex="0"><table>{top}<tbody>{body}</tbody></table></div>'
