"""The log block of one request: operators grep these lines, so their wording is fixed.

The lines carry no prefix; log.py puts time, level and request id in front of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepaudio.timing import OTHER
from stepaudio.types import EncodingTimes, Stage, Synthesis, Timings

GET_ENGINE, POST_PROCESS = "Get engine", "Post-process"
# Width of the longest label, "Post-process:"; the seconds behind it are right-aligned.
LABEL_WIDTH = 13
CHILD_WIDTH = 18
MOST_LINES = 20


def cache_lines(encoding: EncodingTimes) -> list[str]:
    """Return the lines that tell how the reference encoding was come by."""
    if encoding.hit:
        total = encoding.hash + encoding.lookup
        return [
            f"✅ FunASR cache HIT! Total: {total:.3f}s (hash: {encoding.hash:.3f}s, lookup: {encoding.lookup:.3f}s)"
        ]
    total = encoding.encode + encoding.merge
    return [
        "❌ FunASR cache MISS, encoding...",
        f"⏱️ FunASR encoding: {total:.3f}s (encode: {encoding.encode:.3f}s, merge: {encoding.merge:.3f}s)",
    ]


def request_block(synthesis: Synthesis, *, waited: float = 0.0, further: Sequence[Synthesis] = ()) -> str:
    """Return the block of a finished request: at most 20 lines, joined by newlines.

    ``further``: takes that were made in the same request and the same time. ``waited`` is the time in the queue, in
    seconds; it is told, but is no part of the total. Where an edit of several passes would take more lines, the
    stages within stages stand on their parent's line; JSON has them all in full.
    """
    for depth in (2, 1, 0):
        lines = _lines(synthesis, waited, further, depth)
        if len(lines) <= MOST_LINES:
            break
    return "\n".join(lines)


def _lines(synthesis: Synthesis, waited: float, further: Sequence[Synthesis], depth: int) -> list[str]:
    """Return the lines of the block with stages down to this depth below the first ones' children."""
    total = synthesis.timings.total
    lines = [*cache_lines(synthesis.encoding), f"⏱️ Total time: {total:.3f}s"]
    for stage in synthesis.timings.stages:
        share = 100 * stage.seconds / total if total > 0 else 0.0
        label = f"{stage.name}:".ljust(LABEL_WIDTH)
        lines.append(f"   - {label}{stage.seconds:6.3f}s  ({share:.1f}%)")
        for child in stage.children:
            lines.extend(_child_lines(child, depth))
    wait = f", waited {waited:.3f}s in the queue" if waited >= 0.0005 else ""
    first = f"first sound {synthesis.first_sound:.3f}s, " if synthesis.first_sound is not None else ""
    takes = f" in {1 + len(further)} takes" if further else ""
    lines.append(
        f"   audio {synthesis.made_seconds:.2f}s{takes}, RTF {synthesis.rtf:.3f}, {first}seed {synthesis.seed}, "
        f"stopped: {synthesis.stopped}{wait}"
    )
    return lines


def _child_lines(stage: Stage, depth: int, indent: int = 7) -> list[str]:
    name = stage.name.ljust(CHILD_WIDTH - (indent - 7))
    busy = f"  busy {stage.busy:.3f}s" if stage.busy is not None else ""
    # The rest needs no line of its own: a miss and a hit then fit into the last 30 lines of a log.
    inline = [child for child in stage.children if depth <= 0 or (child.name == OTHER and child.seconds)]
    note = "".join(f"  {part}" for part in (stage.note, ", ".join(map(_inline, inline))) if part)
    lines = [f"{' ' * indent}{name} {stage.seconds:.3f}s{busy}{note}"]
    for child in stage.children if depth > 0 else ():
        if child.name != OTHER:
            lines.extend(_child_lines(child, depth - 1, indent + 2))
    return lines


def _inline(stage: Stage) -> str:
    """Return a stage and those within it in one piece."""
    within = f" ({', '.join(map(_inline, stage.children))})" if stage.children else ""
    return f"{stage.name} {stage.seconds:.3f}s{within}"


def spent(timings: Timings, waited: float) -> str:
    """Return the sentence that tells where the seconds went of a request that gave no result; ``waited`` as above."""
    stages = f": {', '.join(map(_inline, timings.stages))}" if timings.stages else ""
    wait = f", waited {waited:.3f}s in the queue" if waited >= 0.0005 else ""
    return f"It ran for {timings.total:.3f}s{stages}{wait}."


def failure_record(event: str, task: str, message: str, timings: Timings, waited: float) -> dict[str, Any]:
    """Return what is known of a request that gave no result as a JSON-ready object; event: how it ended."""
    return {
        "event": event,
        "task": task,
        "message": message,
        "total_seconds": round(timings.total, 6),
        "queue_seconds": round(waited, 6),
        "stages": [_stage_record(stage) for stage in timings.stages],
    }


def request_record(
    task: str, synthesis: Synthesis, *, waited: float = 0.0, further: Sequence[Synthesis] = ()
) -> dict[str, Any]:
    """Return the same facts as a JSON-ready object (STEPAUDIO_LOG_FORMAT=json)."""
    encoding = synthesis.encoding
    first = synthesis.first_sound
    return {
        "event": "request",
        "task": task,
        "cache_hit": encoding.hit,
        "funasr": {
            "hash": round(encoding.hash, 6),
            "lookup": round(encoding.lookup, 6),
            "encode": round(encoding.encode, 6),
            "merge": round(encoding.merge, 6),
        },
        "total_seconds": round(synthesis.timings.total, 6),
        "queue_seconds": round(waited, 6),
        "stages": [_stage_record(stage) for stage in synthesis.timings.stages],
        "audio_seconds": round(synthesis.made_seconds, 3),
        "rtf": round(synthesis.rtf, 4),
        **({"takes": 1 + len(further)} if further else {}),
        **({"first_sound_seconds": round(first, 6)} if first is not None else {}),
        "seed": synthesis.seed,
        "stopped": synthesis.stopped,
    }


def _stage_record(stage: Stage) -> dict[str, Any]:
    record: dict[str, Any] = {"name": stage.name, "seconds": round(stage.seconds, 6)}
    if stage.busy is not None:
        record["busy"] = round(stage.busy, 6)
    if stage.note:
        record["note"] = stage.note
    if stage.children:
        record["children"] = [_stage_record(child) for child in stage.children]
    return record
