"""What the answer to the report says around its figures, in English."""

from __future__ import annotations

EN: dict[str, str] = {
    "title": "Our answer to the report",
    "made_by": "Generated from [{name}.json](../benchmarks/{name}.json) by `{command} --write`; do not edit by hand.",
    "read_this": (
        "The report measured on an {hardware}; the figures of ours below were measured on the machine named next. "
        "The report does not say how long its sounds were. So seconds of one column must not be divided by seconds "
        "of another: what compares is each column's own ratios. \"Original\" is the reference's way of working (chunk "
        "loop, growing cache, no graphs, nothing kept), run here with our kernels, weights and threads, drawing from "
        "the same random numbers; it writes the same tokens as ours."
    ),
    "conditions": "Conditions",
    "machine": "{cpu}, {cores} cores, {threads} threads; {device}",
    "versions": "Python {python}, torch {torch}, ONNX Runtime {onnxruntime}, transformers {transformers}",
    "weights": (
        "weights: {weights} (language model: {millions:.1f} million parameters, width {width}, {layers} layers); "
        "{dtype}{tf32}"
    ),
    "what": "reference {reference_seconds:g} s, sound {sound_seconds:.2f} s, {flow_steps} flow steps; {runs} "
    "interleaved runs, medians",
    "planned": "planned: reference {reference_seconds:g} s, sound {sound_seconds:g} s, {flow_steps} flow steps, "
    "{runs} runs",
    "when": "commit `{commit}`{dirty}, {date}; load average {before} before, {after} after",
    "dirty": " with uncommitted changes",
    "loaded": (
        "**The machine was busy with other work** (load average above its cores or nearly so): seconds by the clock "
        "are longer than on a quiet one and scatter more; processor time says what the work itself costs."
    ),
    "table": "The report's table",
    "head_row": "Step",
    "head_report": "Report, {hardware}",
    "head_report_original": "vs original",
    "head_ours": "Here",
    "head_original": "vs original",
    "head_before": "vs before",
    "head_processor": "Processor time",
    "row_original": "Original",
    "row_tf32": "+ TF32",
    "row_onnx": "+ ONNX Runtime with all threads{cuda}",
    "row_first_write": "+ cache: first write",
    "row_hit_2": "hit #2",
    "row_hit_3": "hit #3",
    "row_ours_first": "**Ours: first**",
    "row_ours_hit_2": "**Ours: hit #2**",
    "row_ours_hit_3": "**Ours: hit #3**",
    "no_tf32": "needs a GPU",
    "cuda": " and CUDA",
    "table_note": (
        "The report gives 17 s for TF32 and ONNX Runtime together. Its rows keep the original decoding and vocoder, "
        'and so do ours down to "hit #3". "Vs before" is the row above, for our own rows the same step of the original '
        "with a cache. The report's first write takes {report_ratio:.2f} times as long as its hit #2, our first "
        "clone {ours_ratio:.2f} times."
    ),
    "spread": (
        "Spread of {hits} hits at the same text, seed and length, (longest - shortest) / shortest: {seconds:.1%} by "
        "the clock, {processor:.1%} in processor time. The report claims under {claimed:.0%}; its own two hits differ "
        "by {reported:.1%}."
    ),
    "targets": "What it was to reach",
    "target": "Target",
    "bound": "Bound",
    "met": "Met by the clock",
    "yes": "yes",
    "no": "**no**",
    "targets_note": "Processor time shows what a busy machine hides; what counts is the clock of a quiet one.",
    "target_windows": "encoder, all windows against the loop, float32",
    "target_narrow": "encoder, the best of bfloat16 and int8 against the loop",
    "target_hit": "a hit: hash and lookup, 10 s of reference",
    "target_hit_file": "a hit with decoding the file",
    "target_miss_hit": "first clone / hit",
    "target_first": "original / our first clone",
    "target_second": "original / our hit",
    "target_rtf": "RTF of a hit, the whole in one piece",
    "target_sound": "first sound of a stream",
    "target_batch": "language model, texts side by side against one by one",
    "target_allocations": "allocations of a decode step",
    "target_waits": "host synchronisations of a decode step",
    "target_spread": "spread of hits",
    "stages": "Where the seconds go",
    "stage": "Stage",
    "other": "other",
    "total": "total",
    "stages_note": 'Medians of each stage by the clock; the report\'s split of its "Clone" was a guess.',
    "switches": "What each switch gains by itself",
    "switch": "Switch",
    "without": "Without",
    "with": "With",
    "factor": "Factor",
    "saves": "Saves",
    "check": "Same result",
    "switch_windows": "all Paraformer windows at once, not a loop",
    "switch_beside": "the four encoders side by side",
    "switch_cache": "the encoding from the cache",
    "switch_step": "a decode step that allocates nothing (graphs on a GPU), legal ids only",
    "switch_kernels": "the step in kernels of our own (on a CPU one compiled loop, where the model is small)",
    "switch_kept": "the beginning of the prompt kept",
    "switch_ahead": "time embedding and adaLN of the flow computed once",
    "switches_note": (
        'Seconds of the part alone, everything else being equal; in brackets processor time. "Same result": share of '
        "equal codes or tokens, for the flow the largest difference of the mel."
    ),
    "advice": "The report's advice, one by one",
    "advice_head": "Advice",
    "advice_answer": "Our answer",
    "advice_figure": "Measured",
    "advice_light": "A lighter FunASR model",
    "advice_light_answer": (
        "Another model has other codes, which the language model does not know (see README, Engines); the same model "
        "is computed in another way: all windows at once, in bfloat16 or int8 where the processor has it."
    ),
    "advice_light_figure": "{seconds:g} s at {size}: loop {loop}; {rows}",
    "size_real": "the real size",
    "size_small": "a small size",
    "codes_kept": "{share:.1%} of the codes",
    "advice_onnx": "ONNX + TensorRT",
    "advice_onnx_answer": (
        "`export-encoder` writes ONNX for the CPU and CUDA. TensorRT is not offered: it rounds to TF32 without an "
        "option of a session against that, and rounding moves codes."
    ),
    "advice_onnx_figure": "ONNX Runtime {onnx}, torch {torch}",
    "not_measured": "not measured in this run",
    "advice_small": "A smaller language model",
    "advice_small_answer": (
        "It would be another voice. The same model can be packed (`STEPAUDIO_VARIANT`), which saves memory. It saves "
        "time only where the packed weights themselves are multiplied, so that a token reads fewer bytes: `bnb-int8` "
        "and `awq` on a CPU, by torch's kernels. All other packed products unpack their matrix first."
    ),
    "advice_small_figure": "{ids} tokens with their prompt: {variants}.{products} Bytes for a token at the real size: "
    "{bf16:.2f} GB in bfloat16, {w4:.2f} GB in four bits (computed)",
    "advice_small_products": " One product as large as the real model's ({inner} x {outer}): {rows}.",
    "advice_flash": "Flash Attention 2",
    "advice_flash_answer": (
        "It has no square-root ALiBi bias, which this model needs. Attention is fused by torch with the bias given; "
        "and a token's time goes into reading weights, not into attention."
    ),
    "advice_flash_figure": "keys and values are {share:.0%} of what a token reads here, {real:.1%} at the real size",
    "advice_fewer": "Fewer new tokens",
    "advice_fewer_answer": (
        "The sound's length decides how many there are: 41.67 a second. A cap by the text's length ends what runs "
        "away, and a kept beginning saves reading the prompt again."
    ),
    "advice_fewer_figure": "{ms:.2f} ms a token, so {per_second:.3f} s for a second of sound",
    "scenarios": "The report's scenarios",
    "scenario_1": "1. {texts} texts in one voice",
    "way": "Way",
    "arithmetic": "Arithmetic",
    "seconds": "Seconds",
    "baseline": "original",
    "baseline_cached": "original with a cache",
    "ours": "ours",
    "ours_batched": "ours, in batches of {batch}",
    "scenario_1_note": (
        "Estimated from the medians of {runs} runs. Measured ({batch_runs} runs): {batch} texts in one batch {texts}, "
        "{batch} takes of one text {takes}, one text {one}. Side by side work the language model and, on a GPU, the "
        "flow; the rest goes through one sound after another."
    ),
    "scenario_2": "2. {requests:,} requests a day, 70 % hits",
    "mean": "Mean",
    "hours": "Hours a day",
    "machine_share": "Share of one machine",
    "mean_processor": "Mean, processor time",
    "scenario_2_right": (
        "The report says {claimed} s on average. Its own figures give 0.3 x 12 + 0.7 x 8 = {mean:.1f} s, which is "
        "{hours:.1f} hours for 10,000 requests: more than one GPU's day ({machine:.0%}), and {ratio:.0%} of the "
        "original's 24 s ({original:.1f} hours)."
    ),
    "report_corrected": "the report's figures, put right",
    "scenario_3": "3. The voices A B C A B",
    "scenario_3_note": "Measured; **bold**: a hit.",
    "live": "First sound, streaming, several at a time",
    "stream_note": (
        "Streaming, a hit: first sound after **{first:.3f} s**, {seconds:.3f} s for {sound:.2f} s of sound in {pieces} "
        "pieces (RTF {rtf:.3f}); the whole in one piece: {whole:.3f} s (RTF {whole_rtf:.3f}). The original and the "
        "report have no streaming: their first sound comes with the last."
    ),
    "clients": "At once",
    "median": "Median",
    "longest": "Longest",
    "per_minute": "Requests a minute",
    "queue_note": "All hits, through the product's queue, which gives one request the whole machine; waiting included.",
    "decode": "Decoding against its ceiling",
    "decode_note": (
        "One sequence: {rate:.0f} tokens a second ({ms:.3f} ms each). Copy bandwidth {bandwidth:.1f} GB/s, "
        "{megabytes:.1f} MB read for a token: ceiling {ceiling:.0f} tokens a second, **{share:.0%}** of it reached. "
        "In steady state {allocations:g} allocations and {waits:.2g} host synchronisations a token."
    ),
    "decode_cached": (
        "Weights of this size fit into the processor's cache or nearly so: here the ceiling bounds nothing, and what "
        "costs is the number of operations."
    ),
    "decode_notice": (
        "One of the waits counted in these {watched} tokens was none: the bench of that commit also counted the notice "
        "with which torch's watch for waits begins."
    ),
    "batch_note": (
        "{batch} texts: {one:.3f} s one by one, {together:.3f} s side by side: **{factor:.1f} x** "
        "({processor:.1f} x in processor time). {batch} takes of one text: {takes:.3f} s against {take:.3f} s for "
        "one, {takes_factor:.1f} x the throughput."
    ),
    "encoder": "The encoder by length",
    "encoder_note": "Paraformer encoder of {size}, random weights, torch in float32.",
    "clip": "Clip",
    "loop": "Chunk loop",
    "windows": "All windows at once",
    "codes_equal": "Codes equal",
    "hit_note": (
        "A hit for {seconds:g} s of sound: {hash:.1f} ms hash + {lookup:.1f} ms lookup, and {decode:.1f} ms to decode "
        "the WAV file. The report's hit: 15 ms."
    ),
    "projection": "Computed: the real model on an {card}",
    "projection_note": (
        "**Not measured.** {reference:g} s of reference, {sound:g} s of sound, {steps} steps. Decoding reaches "
        "{share:.0%} of what {bandwidth:.0f} GB/s allow ({share_kind}); assumed shares of the peak: prefill "
        "{prefill:.0%}, flow {flow:.0%}, HiFT {hift:.0%}, encoder {encoder:.0%}; starting kernels is left out."
    ),
    "share_assumed": "assumed",
    "share_measured_above": "measured on the GPU above, of what it really copies",
    "share_measured_below": "measured on the GPU below, of what it really copies",
    "takes_measured": " 16 takes are decoded {gain:.1f} times as fast as one after another, as measured there.",
    "precision": "Weights",
    "weights_bfloat16": "bfloat16",
    "weights_W4A16": "4 bits, with a kernel that multiplies them packed (we have none for a GPU)",
    "projected_decode": "Decoding",
    "projected_rest": "Prefill + flow + HiFT",
    "projected_hit": "Hit",
    "projected_miss": "Miss",
    "projected_takes": "A sound of 16 takes",
    "report_row": "report (its length unknown)",
    "open": "What is not measured here",
    "open_gpu": "Nothing here ran on a GPU: CUDA graphs, TF32 and the figures of the full size on a GPU are open. "
    "`python -m stepaudio bench --full-size --device cuda --write` measures them.",
    "open_random": "The weights are random: time does not depend on what they hold, the sound does.",
    "open_parts": "Of the real size this is not measured on a GPU yet: {parts}. "
    "`python -m stepaudio bench --full-size --device cuda --write` measures all of it.",
    "full": "At full size",
    "unfinished": (
        "From [full-size.parts.json](../benchmarks/full-size.parts.json), which `{command}` wrote before it was ended. "
        "Measured: {parts}."
    ),
    "decode_runs": "Decoding: the median of {sequences} sequences; several side by side: {runs} run(s).",
    "comma": ", ",
    "part_decoding": "decoding",
    "part_clones": "whole clones",
    "part_batch": "batches of clones",
    "part_stream": "streams and their first sound",
    "part_hit": "what a hit costs",
    "part_switches": "each switch by itself",
    "part_concurrency": "several requests at a time",
    "part_variants": "the variants of the language model",
    "part_engines": "the encoder's engines",
    "part_voices": "voices that come back",
    "part_scaling": "the encoder by length",
}
