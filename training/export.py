"""Write mini: ``python -m training.export --work W --to models/mini`` puts all trained parts into the real layout.

Weights are stored in half precision, which every loader of the product widens again; see stored.py.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from stepaudio.tiny.vocoder import as_stored
from stepaudio.vocoder.config import YAML_NAME
from stepaudio.vocoder.weights import FLOW_NAME, HIFT_NAME
from stepaudio.weights import COSYVOICE, EDITX, TOKENIZER
from training import flow, hift, linguistic_export, semantic, sizes, speaker
from training.command import begin
from training.stored import compact, flow_file, half, to_bytes


def export_codes(work: Path, to: Path) -> None:
    """Write what turns a reference into codes and voice: the folder Step-Audio-Tokenizer, and campplus.onnx."""
    linguistic_export.export(work, work / "linguistic", to / TOKENIZER)
    path = to / TOKENIZER / "speech_tokenizer_v1.onnx"
    semantic.export(semantic.load(work / "semantic"), path)
    compact(path)


def export_voice(work: Path, to: Path) -> None:
    """Write campplus.onnx."""
    path = to / EDITX / COSYVOICE / "campplus.onnx"
    model = speaker.load(work / "speaker")
    to_bytes(model)
    speaker.export(model, path)
    compact(path)


def export_flow(work: Path, to: Path) -> None:
    """Write cosyvoice.yaml and flow.pt."""
    folder = to / EDITX / COSYVOICE
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(sizes.FOLDER / YAML_NAME, folder / YAML_NAME)
    torch.save(flow_file(flow.load(work / "flow").state_dict()), folder / FLOW_NAME)


def export_hift(work: Path, to: Path) -> None:
    """Write hift.pt, normalised as the real file's weights are."""
    folder = to / EDITX / COSYVOICE
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(half(as_stored(hift.load(work).state_dict())), folder / HIFT_NAME)


PARTS = ("codes", "voice", "flow", "hift")


def main() -> None:
    """Write the parts that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True, help="the weights folder, models/mini")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    begin(options.work, "export", options.threads)
    if "codes" in options.parts:
        export_codes(options.work, options.to)
    if "voice" in options.parts:
        export_voice(options.work, options.to)
    if "flow" in options.parts:
        export_flow(options.work, options.to)
    if "hift" in options.parts:
        export_hift(options.work, options.to)


if __name__ == "__main__":
    main()
