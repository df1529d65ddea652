"""What the flow makes of the clips' own codes: ``python -m training.made --work W``, for HiFT to learn from.

The mel that HiFT is given in the product is smoother than that of any recording. A generator that has heard both
gives sound to what the flow leaves out.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import numpy as np
import torch

from stepaudio.vocoder.flow import Flow
from stepaudio.vocoder.weights import FLOW_NAME, read_state
from stepaudio.weights import COSYVOICE, EDITX
from training.acoustic import MELS
from training.codes import ROW_FRAMES, Spoken, read_spoken
from training.command import begin
from training.flow import TIMES, Voices
from training.flow import load as load_flow
from training.hift import MADE_FOLDER
from training.shards import read_shard_records, save_array, shard_numbers, shard_paths
from training.sizes import flow_config

log = logging.getLogger(__name__)

STEPS = 4
"""Of the solver: fewer than the product's, for there are hours to make."""

PROMPT_SHARE = 0.3
"""How much of a clip is its own prompt."""

SEED = 8


@torch.inference_mode()
def made(flow: Flow, clip: Spoken, speaker: np.ndarray, steps: int, generator: torch.Generator) -> np.ndarray:
    """Return the rows of a clip as the flow gives them, float16 (2 L, 81): its mel, and the true pitch."""
    rows = torch.from_numpy(clip.rows.astype(np.int64))[None]
    prompt_rows = int(PROMPT_SHARE * rows.shape[1])
    prompt = torch.from_numpy(np.asarray(clip.mel[: ROW_FRAMES * prompt_rows, :MELS], np.float32))[None]
    noise = torch.randn((1, ROW_FRAMES * rows.shape[1], MELS), generator=generator)
    conditions = flow.conditions(rows, flow.prompt(prompt, prompt_rows, rows.shape[1]), torch.from_numpy(speaker)[None])
    mel = flow.decoder(noise, conditions, steps=steps)[0].numpy()
    return np.column_stack((mel, clip.mel[: len(mel), MELS])).astype(np.float16)


def make_shard(flow: Flow, work: Path, name: str, number: int, known: dict[str, Spoken], steps: int) -> None:
    """Write the rows of one shard, as training.acoustic's are: none for a clip whose codes or rows are missing."""
    generator = torch.Generator().manual_seed(SEED + number)
    voices = Voices(list(known.values()))
    found, places = [np.zeros((0, MELS + 1), np.float16)], []
    for record in read_shard_records(work / name, number):
        clip = known.get(record.name)
        if clip is not None and len(clip.rows):
            found.append(made(flow, clip, voices.draw(clip, generator), steps, generator))
        places.append((len(found[-1]), clip.offset) if clip is not None and len(clip.rows) else (0, 0))
    folder = work / MADE_FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    path = shard_paths(folder, number)[0]
    save_array(path.with_suffix(".places.npy"), np.asarray(places, np.int64))
    save_array(path, np.concatenate(found))


def exported(weights: Path) -> Flow:
    """Return the flow of a weights folder."""
    flow = Flow(flow_config())
    flow.load_state_dict(read_state(weights / EDITX / COSYVOICE / FLOW_NAME))
    return flow.eval()


def main() -> None:
    """Make the rows of some shards of every set; those of an earlier flow are to be removed first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", choices=tuple(TIMES), default=tuple(TIMES))
    parser.add_argument("--every", type=int, default=4, help="of the shards, one in so many")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--weights", type=Path, help="a weights folder whose flow is taken, not that of the last training"
    )
    options = parser.parse_args()
    begin(options.work, "made", 1)
    flow = exported(options.weights) if options.weights else load_flow(options.work / "flow")
    for name in options.sets:
        known = {clip.record.name: clip for clip in read_spoken(options.work, name)}
        for number in shard_numbers(options.work / "codes" / name, "npy")[:: options.every]:
            if not shard_paths(options.work / MADE_FOLDER / name, number)[0].is_file():
                make_shard(flow, options.work, name, number, known, options.steps)
                log.info("%s: shard %d", name, number)


if __name__ == "__main__":
    main()
