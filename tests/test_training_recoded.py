"""Tables of codes that were made anew begin as what was known of the former ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from training import recoded
from training.recoded import FIRST, SETS, mixed, read_pairs, shares
from training.shards import Clip, save_array, shard_paths, write_shard


def test_a_code_that_was_only_called_otherwise_keeps_what_was_known_of_it() -> None:
    rng = np.random.default_rng(0)
    names = rng.permutation(50)
    former = rng.integers(0, 50, 20_000)
    share = shares(iter([(former, names[former])]), 50)
    torch.testing.assert_close(share.sum(1), torch.ones(50))
    table = torch.randn(60, 8)
    found = mixed(table, 5, share)
    assert torch.equal(found[:5], table[:5])
    assert torch.equal(found[55:], table[55:])
    torch.testing.assert_close(found[5 + torch.from_numpy(names)], table[5:55], atol=0.05, rtol=0)


def test_a_code_that_never_came_begins_as_the_usual_sound() -> None:
    former = np.array([0, 0, 0, 1])
    share = shares(iter([(former, np.array([0, 0, 1, 1]))]), 3)
    torch.testing.assert_close(share[2], torch.tensor([0.75, 0.25, 0.0]))
    torch.testing.assert_close(share[0], torch.tensor([2.75, 0.25, 0.0]) / 3)


def test_clips_are_found_again_by_their_names(tmp_path: Path) -> None:
    work, name = tmp_path / "work", SETS[0]
    write_shard(work / name, 0, [Clip(f"clip-{n}", "s", np.zeros(4, np.float32), 16000) for n in range(3)])
    lengths, offsets = {"before": (3, 4, 5), "codes": (3, 5, 5)}, {"before": (0, 0, 7), "codes": (0, 0, 8)}
    for place, counts in lengths.items():
        path = shard_paths(work / place / name, 0)[0]
        path.parent.mkdir(parents=True)
        rows = np.stack((np.zeros(sum(counts)), FIRST + np.arange(sum(counts))), 1).astype(np.int16)
        save_array(path.with_suffix(".voices.npy"), np.zeros((3, 192), np.float32))
        save_array(
            path.with_suffix(".places.npy"), np.asarray(list(zip(counts, offsets[place], strict=True)), np.int64)
        )
        save_array(path, rows)
    found = list(read_pairs(work, work / "before"))
    assert [(one.tolist(), other.tolist()) for one, other in found] == [
        ([0, 1, 2], [0, 1, 2]),
        ([3, 4, 5, 6], [3, 4, 5, 6]),
    ]


def test_the_tables_are_those_of_flow_and_language_model() -> None:
    from stepaudio.llm.network import Decoder
    from stepaudio.vocoder.flow import Flow
    from training.language import Trainee, size_of
    from training.sizes import flow_config

    assert recoded.FLOW_TABLE in Flow(flow_config()).state_dict()
    language = Trainee(size_of(100)).state_dict()
    assert {*recoded.LANGUAGE_TABLES} <= language.keys()
    assert "embed_tokens.weight" in Decoder(size_of(100)).state_dict()
