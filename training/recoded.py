"""Begin with what was known of other codes: ``python -m training.recoded --work W --before CODES --weights M``.

A semantic tokenizer that was trained anew calls every sound by another code. Clips whose codes are known from before
and after (``CODES`` is the former folder ``W/codes``) tell which former codes stood where a new one stands. In the
tables of flow and language model a new code begins as the mean of these, and training goes on instead of beginning.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from stepaudio.prompts import TOKENIZER_FILE, SpeechTokenizer
from stepaudio.tokens import (
    LINGUISTIC_CODES,
    LINGUISTIC_PER_GROUP,
    PAD_LINGUISTIC,
    ROWS_PER_GROUP,
    SEMANTIC_ROW_OFFSET,
)
from stepaudio.vocoder.weights import FLOW_NAME, read_state
from stepaudio.weights import COSYVOICE, EDITX
from training.codes import read_codes
from training.command import begin
from training.language import WEIGHTS_FILE
from training.semantic import LEVELS
from training.stored import FLOW_TABLE, flow_file

log = logging.getLogger(__name__)

SETS = ("recordings", "presets", "hibari")
FIRST = LINGUISTIC_CODES + SEMANTIC_ROW_OFFSET
"""In rows and in the flow's table: the first semantic code."""

DOUBT = 1.0
"""How many times every code is counted as it is used on the whole, so that a rare one does not begin as one sound."""

LANGUAGE_TABLES = ("model.embed_tokens.weight", "lm_head.weight")


def read_pairs(work: Path, before: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the semantic codes of every clip before and after, int64 (L,) each."""
    for name in SETS:
        former = {one.record.name: one for one in read_codes(work, name, before)}
        for after in read_codes(work, name):
            known = former.get(after.record.name)
            if known is not None and known.offset == after.offset:
                count = min(len(known.rows), len(after.rows))
                yield tuple(one.rows[:count, 1].astype(np.int64) - FIRST for one in (known, after))  # type: ignore[misc]


def shares(pairs: Iterator[tuple[np.ndarray, np.ndarray]], codes: int) -> torch.Tensor:
    """Return how often each former code stood where a new one stands, (new, former), with rows that sum to 1."""
    counts = np.zeros((codes, codes), np.float32)
    for before, after in pairs:
        np.add.at(counts, (after, before), 1)
    usual = counts.sum(0) / max(1.0, counts.sum())
    counts += DOUBT * usual
    return torch.from_numpy(counts / counts.sum(1, keepdims=True))


def mixed(table: torch.Tensor, first: int, share: torch.Tensor) -> torch.Tensor:
    """Return a table whose rows from ``first`` on are mixed by ``share`` (new, former)."""
    out = table.float().clone()
    out[first : first + len(share)] = share @ out[first : first + len(share)]
    return out


def main() -> None:
    """Mix the tables of a weights folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True, help="the folder of the former codes")
    parser.add_argument("--weights", type=Path, required=True, help="the weights folder, which is changed")
    options = parser.parse_args()
    begin(options.work, "recoded", 1)
    share = shares(read_pairs(options.work, options.before), int(np.prod(LEVELS)))
    log.info("a new code is %.1f former ones", float((-(share * share.clamp(min=1e-12).log()).sum(1)).exp().mean()))
    folder = options.weights / EDITX
    path = folder / COSYVOICE / FLOW_NAME
    flow = read_state(path)
    table = mixed(flow[FLOW_TABLE], FIRST, share)
    # Linguistic codes tell the flow nothing any more: it begins with what they told on the whole.
    none = (LINGUISTIC_PER_GROUP * table[:LINGUISTIC_CODES].mean(0) + table[PAD_LINGUISTIC]) / ROWS_PER_GROUP
    table[PAD_LINGUISTIC] = none
    flow[FLOW_TABLE] = table
    torch.save(flow_file(flow), path)
    state = load_file(folder / WEIGHTS_FILE)
    start = SpeechTokenizer.load(folder / TOKENIZER_FILE).vocabulary.semantic.start
    state |= {name: mixed(state[name], start, share).half() for name in LANGUAGE_TABLES}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
