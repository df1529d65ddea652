"""Weights folders of random networks in chosen sizes: time does not depend on what a network has learnt.

Sounds have no end of their own: the end id of a random language model is never drawn, so that the cap of new ids
decides, and every run has the same length.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from stepaudio.bench.stand_ins import S3Size, write_s3_of
from stepaudio.loading import CAMPPLUS, CENTROIDS, S3_ONNX
from stepaudio.tiny.encoder import FUNASR_FOLDER, write_campplus, write_encoder, write_paraformer
from stepaudio.tiny.llm import TINY_SIZES, write_llm
from stepaudio.tiny.vocoder import TINY_YAML, write_vocoder
from stepaudio.tokens import LINGUISTIC_CODES
from stepaudio.weights import CARD, COSYVOICE, EDITX, TOKENIZER

SEED = 1
REAL_LAYERS = 32
REAL_VOCABULARY = 74752


@dataclass(frozen=True)
class FolderSize:
    """The sizes of all networks of a folder.

    llm: fields of config.json.   paraformer: arguments of tiny's paraformer_config().   vocoder: lines of
    cosyvoice.yaml that differ from the tiny one's, by section.   s3: None for the tiny stand-in.
    """

    name: str
    llm: Mapping[str, int] = field(default_factory=lambda: TINY_SIZES)
    paraformer: Mapping[str, int] = field(default_factory=dict)
    vocoder: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    s3: S3Size | None = None
    dtype: torch.dtype = torch.float32


def llm_sizes(hidden: int, intermediate: int, heads: int, groups: int, layers: int) -> dict[str, int]:
    """Return the fields of config.json for a network of these sizes."""
    return {
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_attention_groups": groups,
        "num_hidden_layers": layers,
    }


TINY = FolderSize("tiny")

MINI = FolderSize(
    "mini",
    llm=llm_sizes(192, 448, 6, 2, 6),
    paraformer={"size": 192, "heads": 4, "linear_units": 640, "blocks": 5},
    vocoder={
        "flow": {"input_size": "192"},
        "input_embedding": {"input_size": "192"},
        "encoder": {
            "input_size": "192",
            "output_size": "160",
            "num_blocks": "3",
            "num_up_blocks": "2",
            "attention_heads": "4",
            "linear_units": "480",
        },
        "estimator": {"mlp_ratio": "3.0", "depth": "5", "num_heads": "3", "head_dim": "48", "hidden_size": "160"},
        "hift": {
            "base_channels": "128",
            "nb_harmonics": "32",
            "resblock_kernel_sizes": "[3, 7]",
            "resblock_dilation_sizes": "[[1, 3, 5], [1, 3, 5]]",
            "source_resblock_kernel_sizes": "[7, 7, 7]",
        },
        "f0_predictor": {"cond_channels": "96"},
    },
)
"""The sizes of models/mini."""


def real_size(layers: int = REAL_LAYERS, dtype: torch.dtype = torch.bfloat16) -> FolderSize:
    """Return the sizes of Step-Audio-EditX; fewer layers of its language model where memory or time is short."""
    return FolderSize(
        "real" if layers == REAL_LAYERS else f"real, {layers} of {REAL_LAYERS} layers of the language model",
        llm={**llm_sizes(3072, 8192, 48, 4, layers), "vocab_size": REAL_VOCABULARY, "max_seq_len": 32768},
        paraformer={"size": 512, "heads": 4, "linear_units": 2048, "blocks": 50},
        vocoder={
            "flow": {"input_size": "512"},
            "input_embedding": {"input_size": "512"},
            "encoder": {
                "input_size": "512",
                "output_size": "512",
                "num_blocks": "6",
                "num_up_blocks": "4",
                "attention_heads": "8",
                "linear_units": "2048",
            },
            "estimator": {"mlp_ratio": "4.0", "depth": "16", "num_heads": "8", "head_dim": "64", "hidden_size": "512"},
            "hift": {"base_channels": "512"},
            "f0_predictor": {"cond_channels": "512"},
        },
        s3=S3Size(width=1280, heads=20, layers=6),
        dtype=dtype,
    )


def write_folder(folder: Path, size: FolderSize) -> Path:
    """Write a complete weights folder of random networks of these sizes and return its path."""
    editx, tokenizer = folder / EDITX, folder / TOKENIZER
    (editx / COSYVOICE).mkdir(parents=True)
    write_llm(editx, SEED, size.llm, size.dtype)
    write_vocoder(editx / COSYVOICE, SEED, vocoder_yaml(size.vocoder))
    write_campplus(editx / COSYVOICE / CAMPPLUS, SEED)
    if size.s3 is None:
        write_encoder(tokenizer, SEED, **size.paraformer)
    else:
        write_paraformer(tokenizer / FUNASR_FOLDER, SEED, **size.paraformer)
        # Drawn, not taken from the encoder's own frames, which would take minutes at the real size.
        drawn = np.random.default_rng(SEED).standard_normal((LINGUISTIC_CODES, size.paraformer["size"]), np.float32)
        np.save(tokenizer / CENTROIDS, drawn)
        write_s3_of(tokenizer / S3_ONNX, size.s3, SEED)
    card = {"title": f"random weights of size {size.name}", "speaks": False}
    (folder / CARD).write_text(json.dumps(card) + "\n", encoding="utf-8")
    return folder


def vocoder_yaml(changes: Mapping[str, Mapping[str, str]]) -> str:
    """Return tiny's cosyvoice.yaml with other values: ``changes`` by the key that opens their section.

    Raises KeyError for a section or a key that the file does not have.
    """
    pending = {(section, key): value for section, keys in changes.items() for key, value in keys.items()}
    sections: list[tuple[int, str]] = []
    lines = []
    for line in TINY_YAML.splitlines():
        key, colon, value = line.partition(":")
        indent = len(key) - len(key.lstrip())
        if colon:
            sections = [outer for outer in sections if outer[0] < indent]
            place = (sections[-1][1] if sections else "", key.strip())
            if place in pending:
                line = f"{key}: {pending.pop(place)}"
            if not value.strip() or value.strip().startswith("!new:"):
                sections.append((indent, key.strip()))
        lines.append(line)
    if pending:
        raise KeyError(f"cosyvoice.yaml has no {sorted(pending)}")
    return "\n".join([*lines, ""])
