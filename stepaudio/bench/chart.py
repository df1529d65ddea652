"""The picture of a measurement: where the seconds of each kind of clone go, as stacked bars."""

from __future__ import annotations

from pathlib import Path

from stepaudio.bench.answer import OUR_ROWS, PREDECESSOR_ROWS, STAGES, Results

WIDTH, LEFT, RIGHT = 1000, 220, 90
BAR, GAP, TOP, BOTTOM = 26, 12, 64, 60
COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#bab0ac")
INK, PAPER = "#222222", "#ffffff"
LABELS = {
    "original": "Original",
    "tf32": "+ TF32",
    "onnx": "+ ONNX Runtime",
    "first_write": "+ cache: first write",
    "hit_2": "hit #2",
    "hit_3": "hit #3",
    "ours_first": "Ours: first",
    "ours_hit_2": "Ours: hit #2",
    "ours_hit_3": "Ours: hit #3",
}


def draw(results: Results, path: Path) -> None:
    """Write the picture as a PNG file."""
    from PIL import Image, ImageDraw, ImageFont

    rows = {name: row for name in (*PREDECESSOR_ROWS, *OUR_ROWS) if (row := results["clones"]["rows"].get(name))}
    longest = max(sum(row["stages"].values()) for row in rows.values())
    height = TOP + len(rows) * (BAR + GAP) + BOTTOM
    image = Image.new("RGB", (WIDTH, height), PAPER)
    pen = ImageDraw.Draw(image)
    font, small = ImageFont.load_default(16), ImageFont.load_default(13)
    told = results["conditions"]
    sound = results["clones"]["sound_seconds"]
    pen.text((16, 12), f"Seconds for one clone of {sound:.1f} s of sound", INK, font)
    x = 16.0
    for stage, colour in zip(STAGES, COLOURS, strict=True):
        pen.rectangle((x, 40, x + 12, 52), colour)
        pen.text((x + 18, 37), stage, INK, small)
        x += 34 + pen.textlength(stage, small)
    scale = (WIDTH - LEFT - RIGHT) / longest
    for number, (name, row) in enumerate(rows.items()):
        y = TOP + number * (BAR + GAP)
        pen.text((16, y + 4), LABELS[name], INK, font)
        x = LEFT
        for stage, colour in zip(STAGES, COLOURS, strict=True):
            wide = row["stages"].get(stage, 0.0) * scale
            pen.rectangle((x, y, x + wide, y + BAR), colour)
            x += wide
        pen.text((x + 8, y + 4), f"{row['seconds']:.2f} s", INK, font)
    model = told["language_model"]
    where = f"{told['device']}; {told['cpu']}, {told['threads']} threads; load {told['load_before'][:1]}"
    what = f"{told['weights']}, {model['parameters'] / 1e6:.1f} M parameters, {told['dtype']}; {told['commit'][:10]}"
    pen.text((16, height - BOTTOM + 10), where, INK, small)
    pen.text((16, height - BOTTOM + 30), what, INK, small)
    image.save(path, optimize=True)
