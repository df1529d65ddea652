"""The README's figures: the short form of the answer."""

from __future__ import annotations

from stepaudio.bench import answer
from stepaudio.bench.answer import Results
from stepaudio.bench.parts import takes_gain
from stepaudio.bench.words import Language

ON_GPU = (
    "**On a GPU** ({device}, torch {torch}, {weights}, {dtype}; commit `{commit}`, {date}) one sequence decodes "
    "{rate:.0f} tokens a second, {share:.0%} of what the GPU's copy bandwidth of {bandwidth:.0f} GB/s allows: "
    "{seconds:.2f} s for a second of sound, with {allocations:g} allocations a token. {batch} takes of one text side "
    "by side are {gain:.1f} times as fast as one after another."
)
NO_CLONES = (
    "**The rest of a clone at this size is not measured on a GPU yet** "
    "([what is open](docs/ANSWER.md#what-is-not-measured-here))."
)


def blocks(results: Results, full: Results | None) -> dict[str, str]:
    """Return the generated parts of the README's section on speed by their names; full: see answer.answer()."""
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
    return {"speed-gpu": _gpu(full), **{name: "\n".join(lines).rstrip() + "\n" for name, lines in parts.items()}}


def _gpu(full: Results | None) -> str:
    """Return a paragraph on decoding on a GPU, "" where that is not measured."""
    if full is None or not full["conditions"]["on_gpu"] or "decoding" not in full:
        return ""
    told, decode = full["conditions"], full["decoding"]
    paragraph = ON_GPU.format(
        **{name: told[name] for name in ("device", "torch", "weights", "dtype", "date")},
        commit=told["commit"][:10],
        rate=decode["ids_per_second"],
        share=decode["share_of_ceiling"],
        bandwidth=decode["copy_bandwidth"] / 1e9,
        seconds=decode["milliseconds_per_id"] / 1e3 * 125 / 3,
        batch=decode["batch"],
        gain=takes_gain(decode),
        allocations=decode["allocations_per_id"],
    )
    return paragraph + ("" if "clones" in full else f" {NO_CLONES}") + "\n"
