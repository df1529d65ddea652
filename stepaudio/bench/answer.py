"""The answer to the report, in English or Chinese: every figure from the JSON of a measurement, beside the report's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stepaudio.bench.markdown import both, seconds, table
from stepaudio.bench.parts import takes_gain
from stepaudio.bench.targets import targets
from stepaudio.bench.words import WORDS, Language

Results = dict[str, Any]
PREDECESSOR_ROWS = ("original", "tf32", "onnx", "first_write", "hit_2", "hit_3")
COUNTERPARTS = {"ours_first": "first_write", "ours_hit_2": "hit_2", "ours_hit_3": "hit_3"}
OUR_ROWS = tuple(COUNTERPARTS)
STAGES = ("FunASR", "LLM", "Flow", "Vocoder", "other")
WAYS = ("baseline", "baseline_cached", "ours")


def answer(results: Results, language: Language, full: Results | None = None) -> str:
    """Return the whole document; ``full``: the results at full size, where there are any (see parts.unfinished)."""
    words = WORDS[language]
    told, report = results["conditions"], results["report"]
    lines = [
        f"# {words['title']}",
        "",
        words["made_by"].format(name=told["name"], command=told["command"]),
        "",
        words["read_this"].format(hardware=report["hardware"]),
        "",
        f"## {words['conditions']}",
        "",
        *conditions(results, language),
        f"## {words['table']}",
        "",
        *report_table(results, language),
        words["spread"].format(
            **{key: results["clones"]["spread"][key] for key in ("hits", "seconds", "processor")},
            claimed=report["claimed_spread"],
            reported=report["spread"],
        ),
        "",
        f"## {words['targets']}",
        "",
        *target_table(results, language),
        f"## {words['stages']}",
        "",
        *stage_table(results, language),
        f"## {words['switches']}",
        "",
        *switch_table(results, language),
        f"## {words['advice']}",
        "",
        *_advice(results, language),
        f"## {words['scenarios']}",
        "",
        *_scenarios(results, language),
        f"## {words['live']}",
        "",
        *live(results, language),
        f"## {words['decode']}",
        "",
        *decoding(results, language),
        f"## {words['encoder']}",
        "",
        *encoder_table(results, language),
        *_projection(results, full, language),
        *(_full(full, language) if full else []),
        f"## {words['open']}",
        "",
        *_open(results, full, language),
    ]
    return "\n".join(lines).rstrip() + "\n"


def conditions(results: Results, language: Language) -> list[str]:
    """Return what was measured where, as a list, and a warning where the machine was busy."""
    words, told = WORDS[language], results["conditions"]
    model, plan = told["language_model"], told["plan"]
    lines = [
        words["machine"].format(**told),
        words["versions"].format(**told),
        words["weights"].format(
            weights=told["weights"],
            millions=model["parameters"] / 1e6,
            width=model["width"],
            layers=model["layers"],
            dtype=told["dtype"],
            tf32=", TF32" if told["tf32"] else "",
        ),
        # Only clones say how long their sounds really were; and one part may take fewer runs than another.
        words["what"].format(**{**plan, "sound_seconds": results["clones"]["sound_seconds"]})
        if "clones" in results
        else words["planned"].format(**plan),
        words["when"].format(
            commit=told["commit"][:10],
            dirty=words["dirty"] if told["uncommitted_changes"] else "",
            date=told["date"],
            before=_load(told["load_before"]),
            after=_load(told["load_after"]),
        ),
    ]
    return [*(f"- {line}" for line in lines), "", *([words["loaded"], ""] if busy(results) else [])]


def busy(results: Results) -> bool:
    """Return whether other work took the machine: before it began, hardly anything of ours was running."""
    told = results["conditions"]
    return bool(told["load_before"]) and told["load_before"][0] > 0.5 * told["cores"]


def report_table(results: Results, language: Language) -> list[str]:
    """Return the report's rows with its figures and ours beside each other, then our own rows."""
    words, rows, report = WORDS[language], results["clones"]["rows"], results["report"]
    theirs = report["clone_seconds"]
    first = rows["original"]
    lines: list[list[str]] = []
    before: Results | None = None
    for name in (*PREDECESSOR_ROWS, *OUR_ROWS):
        label = words[f"row_{name}"].format(cuda=words["cuda"] if results["conditions"]["on_gpu"] else "")
        said = theirs.get(name)
        cells = [
            label,
            seconds(said) if said else "",
            f"{said / theirs['original']:.2f}" if said else "",
        ]
        row = rows.get(name)
        if row is None:
            lines.append([*cells, words["no_tf32"], "", "", "", ""])
            continue
        # Our rows follow the cached baseline's: a first one its first write, a hit its hit.
        before = rows[COUNTERPARTS[name]] if name in COUNTERPARTS else before
        lines.append(
            [
                *cells,
                seconds(row["seconds"]),
                f"{row['seconds'] / first['seconds']:.2f}",
                f"{row['seconds'] / before['seconds']:.2f}" if before else "",
                seconds(row["processor"]),
                f"{row['processor'] / first['processor']:.2f}",
            ]
        )
        before = row
    heads = [
        words["head_row"],
        words["head_report"].format(hardware=report["hardware"]),
        *(words[key] for key in ("head_report_original", "head_ours", "head_original", "head_before")),
        *(words[key] for key in ("head_processor", "head_original")),
    ]
    note = words["table_note"].format(
        report_ratio=theirs["first_write"] / theirs["hit_2"],
        ours_ratio=rows["ours_first"]["seconds"] / rows["ours_hit_2"]["seconds"],
    )
    return [*table(heads, lines), note, ""]


def stage_table(results: Results, language: Language) -> list[str]:
    """Return the stages of the original, of our first clone and of our hit."""
    words, rows = WORDS[language], results["clones"]["rows"]
    names = ("original", "ours_first", "ours_hit_2")
    lines = []
    for stage in STAGES:
        taken = [rows[name]["stages"].get(stage, 0.0) for name in names]
        totals = [sum(rows[name]["stages"].values()) for name in names]
        shares = [f"{value:.3f} s ({value / total:.0%})" for value, total in zip(taken, totals, strict=True)]
        lines.append([words["other"] if stage == "other" else stage, *shares])
    lines.append([words["total"], *(f"{rows[name]['seconds']:.3f} s" for name in names)])
    heads = [words["stage"], *(words[f"row_{name}"] for name in names)]
    return [*table(heads, lines), words["stages_note"], ""]


def switch_table(results: Results, language: Language) -> list[str]:
    """Return what each switch gains."""
    words = WORDS[language]
    lines = []
    for row in results["switches"]:
        without, having, same = row["without"], row["with"], row["agreeing"]
        check = "" if same is None else f"{same:.1e}" if row["name"] == "ahead" else f"{same:.2%}"
        saved = without["seconds"] - having["seconds"]
        cells = [both(without), both(having), f"{row['factor']:.1f} x", seconds(saved) if saved > 0 else "0", check]
        lines.append([words[f"switch_{row['name']}"], *cells])
    heads = [words[key] for key in ("switch", "without", "with", "factor", "saves", "check")]
    return [*table(heads, lines), words["switches_note"], ""]


def target_table(results: Results, language: Language) -> list[str]:
    """Return what this measurement was to show, and whether it does."""
    words = WORDS[language]
    lines = [
        [
            words[f"target_{row.name}"],
            f"{'≤' if row.at_most else '≥'} {_figure(row.target, row.unit)}",
            _figure(row.measured, row.unit),
            "" if row.processor is None else _figure(row.processor, row.unit),
            words["yes" if row.met else "no"],
        ]
        for row in targets(results)
    ]
    heads = [words[key] for key in ("target", "bound", "head_ours", "head_processor", "met")]
    return [*table(heads, lines), words["targets_note"], ""]


def _figure(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.1%}"
    digits = 1 if unit == "ms" else 2
    return f"{value:.{digits}f} {unit}".rstrip()


def _advice(results: Results, language: Language) -> list[str]:
    words, decode = WORDS[language], results["decoding"]
    encoder = results["encoder"]
    engines = {row["name"]: row for row in encoder["engines"]["rows"]}
    loop = engines["loop"]
    others = []
    for name, row in engines.items():
        if name != "loop":
            gain = f"{loop['seconds'] / row['seconds']:.1f} x ({loop['processor'] / row['processor']:.1f} x)"
            others.append(f"{name} {both(row)}: {gain}, {words['codes_kept'].format(share=row['codes_equal'])}")
    real = results["projection"]["rows"]
    variants = results.get("variants", [])
    read = decode["bytes_per_id"]
    figures = {
        "light": words["advice_light_figure"].format(
            seconds=encoder["engines"]["seconds"],
            size=words["size_small" if encoder["small"] else "size_real"],
            loop=both(loop),
            rows="; ".join(others),
        ),
        "onnx": words["advice_onnx_figure"].format(onnx=both(engines["onnx"]), torch=both(engines["torch"]))
        if "onnx" in engines
        else words["not_measured"],
        "small": words["advice_small_figure"].format(
            variants="; ".join(f"{row['name']} {both(row)}" for row in variants) or words["not_measured"],
            products=_products(variants, words),
            ids=decode["ids"],
            bf16=real["bfloat16"]["bytes_per_id"] / 1e9,
            w4=real["W4A16"]["bytes_per_id"] / 1e9,
        ),
        "flash": words["advice_flash_figure"].format(
            share=read["keys_and_values"] / sum(read.values()), real=real["bfloat16"]["keys_share"]
        ),
        "fewer": words["advice_fewer_figure"].format(
            ms=decode["milliseconds_per_id"], per_second=decode["milliseconds_per_id"] / 1e3 * 125 / 3
        ),
    }
    lines = [[words[f"advice_{key}"], words[f"advice_{key}_answer"], figure] for key, figure in figures.items()]
    return table([words[key] for key in ("advice_head", "advice_answer", "advice_figure")], lines, left=3)


def _products(variants: list[dict[str, Any]], words: Mapping[str, str]) -> str:
    """Return what one product of the real size takes with each variant, where that was measured."""
    told = next((row["products"] for row in variants if "products" in row), None)
    if told is None:
        return ""
    rows = "; ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in told["seconds"].items())
    return words["advice_small_products"].format(inner=told["inner"], outer=told["outer"], rows=rows)


def _scenarios(results: Results, language: Language) -> list[str]:
    words, told, report = WORDS[language], results["scenarios"], results["report"]
    voice, day, back = told["one_voice"], told["a_day"], told["voices"]

    def name(way: str) -> str:
        return words[way].format(batch=results["batch"]["batch"])

    lines = [f"### {words['scenario_1'].format(texts=voice['texts'])}", ""]
    rows = [
        [name(way), voice[way]["how"], seconds(voice[way]["seconds"]), seconds(voice[way]["processor"])]
        for way in (*WAYS, "ours_batched")
    ]
    lines += table([words[key] for key in ("way", "arithmetic", "seconds", "head_processor")], rows, left=2)
    batch = results["batch"]
    lines += [
        words["scenario_1_note"].format(
            runs=voice["runs"],
            batch=batch["batch"],
            texts=both(batch["texts"]),
            takes=both(batch["takes"]),
            one=both(batch["one"]),
            batch_runs=batch["runs"],
        ),
        "",
    ]

    lines += [f"### {words['scenario_2'].format(requests=day['requests'])}", ""]
    days = [(words["report_corrected"], report["day"]), *((name(way), day[way]) for way in WAYS)]
    rows = [
        [
            label,
            f"0.3 x {one['miss']:.3f} + 0.7 x {one['hit']:.3f}",
            f"{one['mean']:.3f} s",
            f"{day['requests']:,} x {one['mean']:.3f} / 3600 = {one['hours']:.1f}",
            f"{one['machine']:.0%}",
            f"{one['processor_mean']:.3f} s" if "processor_mean" in one else "",
        ]
        for label, one in days
    ]
    keys = ("way", "arithmetic", "mean", "hours", "machine_share", "mean_processor")
    lines += table([words[key] for key in keys], rows, left=2)
    lines += [
        words["scenario_2_right"].format(
            claimed=report["claimed_mean"],
            mean=report["day"]["mean"],
            hours=report["day"]["hours"],
            machine=report["day"]["machine"],
            ratio=report["day"]["mean"] / report["clone_seconds"]["original"],
            original=report["day_of_original"]["hours"],
        ),
        "",
    ]

    lines += [f"### {words['scenario_3']}", ""]
    rows = []
    for way in WAYS:
        cells = zip(back[way]["seconds"], back[way]["hits"], strict=True)
        taken = [f"**{seconds(value)}**" if hit else seconds(value) for value, hit in cells]
        rows.append([name(way), *taken, seconds(back[way]["total"]), seconds(back[way]["total_processor"])])
    heads = [words["way"], *back["order"], words["total"], words["head_processor"]]
    return [*lines, *table(heads, rows), words["scenario_3_note"], ""]


def live(results: Results, language: Language) -> list[str]:
    """Return first sound and streaming, and several requests at a time."""
    return [*_stream(results, language), *_queue(results, language)]


def _stream(results: Results, language: Language) -> list[str]:
    words, stream = WORDS[language], results["stream"]
    note = words["stream_note"].format(
        first=stream["first_sound"],
        seconds=stream["stream"]["seconds"],
        sound=stream["sound_seconds"],
        pieces=stream["pieces"],
        rtf=stream["stream"]["rtf"],
        whole=stream["whole"]["seconds"],
        whole_rtf=stream["whole"]["rtf"],
    )
    return [note, ""]


def _queue(results: Results, language: Language) -> list[str]:
    words = WORDS[language]
    rows = [
        [
            str(row["clients"]),
            seconds(row["median_seconds"]),
            seconds(row["longest_seconds"]),
            f"{row['per_minute']:.1f}",
        ]
        for row in results["concurrency"]
    ]
    heads = [words[key] for key in ("clients", "median", "longest", "per_minute")]
    return [*table(heads, rows, left=0), words["queue_note"], ""]


def decoding(results: Results, language: Language) -> list[str]:
    """Return decoding against its ceiling, and batches."""
    words, told = WORDS[language], results["decoding"]
    read = sum(told["bytes_per_id"].values())
    lines = [
        words["decode_note"].format(
            rate=told["ids_per_second"],
            ms=told["milliseconds_per_id"],
            bandwidth=told["copy_bandwidth"] / 1e9,
            megabytes=read / 1e6,
            ceiling=told["ceiling"],
            share=told["share_of_ceiling"],
            allocations=told["allocations_per_id"],
            waits=told["synchronisations_per_id"],
        )
    ]
    if read < 100e6 and not results["conditions"]["on_gpu"]:
        lines.append(words["decode_cached"])
    # A bench that lists the waits it counts does not count the notice among them.
    if results["conditions"]["on_gpu"] and told["synchronisations_per_id"] and "waits" not in told:
        lines.append(words["decode_notice"].format(watched=told["watched"]))
    one, together = told["one_by_one"], told["together"]
    batch = words["batch_note"].format(
        batch=told["batch"],
        one=one["seconds"],
        together=together["seconds"],
        factor=one["seconds"] / together["seconds"],
        processor=one["processor"] / max(together["processor"], 1e-9),
        takes=told["takes"]["seconds"],
        take=told["take"]["seconds"],
        takes_factor=takes_gain(told),
    )
    return [" ".join(lines), "", batch, ""]


def encoder_table(results: Results, language: Language) -> list[str]:
    """Return chunk loop and all windows by length, and what a hit costs."""
    words, hit, told = WORDS[language], results["hit"], results["encoder"]
    rows = [
        [
            f"{row['seconds']:g} s",
            both({"seconds": row["chunk_loop"], "processor": row["chunk_loop_processor"]}),
            both({"seconds": row["window_parallel"], "processor": row["window_parallel_processor"]}),
            f"{row['ratio']:.1f} x ({row['chunk_loop_processor'] / row['window_parallel_processor']:.1f} x)",
            f"{row['codes_equal']:.2%}",
        ]
        for row in told["scaling"]
    ]
    heads = [words[key] for key in ("clip", "loop", "windows", "factor", "codes_equal")]
    note = words["encoder_note"].format(size=words["size_small" if told["small"] else "size_real"])
    hits = words["hit_note"].format(
        seconds=hit["seconds"],
        hash=1e3 * hit["hash"],
        lookup=1e3 * hit["lookup"],
        decode=1e3 * hit["decode"]["seconds"],
    )
    return [note, "", *table(heads, rows), hits, ""]


def _projection(results: Results, full: Results | None, language: Language) -> list[str]:
    """Return what the real model should take, from what was measured at full size if anything was."""
    words, told = WORDS[language], (full or results)["projection"]
    kind = "share_assumed"
    if told["decode_share_measured"]:
        kind = "share_measured_below" if full else "share_measured_above"
    note = words["projection_note"].format(
        reference=told["reference_seconds"],
        sound=told["sound_seconds"],
        steps=told["flow_steps"],
        share=told["decode_share"],
        share_kind=words[kind],
        bandwidth=told["card"]["bandwidth"] / 1e9,
        **told["shares"],
    )
    if told.get("takes_gain"):
        note += words["takes_measured"].format(gain=told["takes_gain"])
    rest = told["prefill"] + told["flow"] + told["hift"]
    rows = [
        [words[f"weights_{name}"], f"{row['decode']:.2f} s", f"{rest:.2f} s"]
        + [f"{row[key]:.2f} s" for key in ("hit", "miss", "sixteen_takes_a_sound")]
        for name, row in told["rows"].items()
    ]
    theirs = results["report"]["clone_seconds"]
    rows.append([words["report_row"], "", "", f"{theirs['hit_2']:.2f} s", f"{theirs['first_write']:.2f} s", ""])
    keys = ("precision", "projected_decode", "projected_rest", "projected_hit", "projected_miss", "projected_takes")
    return [
        f"## {words['projection'].format(card=told['card']['name'])}",
        "",
        note,
        "",
        *table([words[key] for key in keys], rows),
    ]


def _full(full: Results, language: Language) -> list[str]:
    """Return the measurement at full size, in short; of one that is not finished, what it has."""
    words, decode = WORDS[language], full.get("decoding")
    lines = [f"## {words['full']}", ""]
    if "missing" in full:
        done = _names(full["measured"], language)
        lines += [words["unfinished"].format(command=full["conditions"]["command"], parts=done), ""]
    lines += conditions(full, language)
    if decode:
        runs = len(decode["one_by_one"]["all_seconds"])
        lines += [words["decode_runs"].format(sequences=runs * decode["batch"], runs=runs), ""]
    shown = {"clones": report_table, "switches": switch_table, "decoding": decoding}
    if "missing" in full:  # a finished one has a document of its own, which shows these
        shown |= {"stream": _stream, "concurrency": _queue}
    return [*lines, *(line for name, part in shown.items() if name in full for line in part(full, language))]


def _open(results: Results, full: Results | None, language: Language) -> list[str]:
    """Return what nobody has measured yet."""
    words = WORDS[language]
    lines = []
    if not any(one["conditions"]["on_gpu"] for one in (results, full) if one):
        lines.append(words["open_gpu"])
    elif full and full["conditions"]["on_gpu"]:
        # The encoder by length is measured on the CPU in any case.
        missing = [name for name in full.get("missing", []) if name != "scaling"]
        if missing:
            lines.append(words["open_parts"].format(parts=_names(missing, language)))
    if "random" in results["conditions"]["weights"]:
        lines.append(words["open_random"])
    return [f"- {line}" for line in lines]


def _names(parts: list[str], language: Language) -> str:
    words = WORDS[language]
    return words["comma"].join(words[f"part_{name}"] for name in parts)


def _load(average: list[float]) -> str:
    return f"{average[0]:.2f}" if average else "?"
