"""Many clips through the window-parallel encoder at once, for training.

The product's network (stepaudio.encoder.sanm) runs all windows of one clip together. Here the windows of several
clips stand one after the other, through the product's own layers: the mask ends each clip's look-back at its own
first window, so the numbers are those of clip after clip. Clips must have whole windows (data.heard pads them).
What stands where is told by a Layout, so that the device gathers it in one go, however many clips there are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from stepaudio.encoder.sanm import CARRIED_FRAMES, NEW_FRAMES, WINDOW, SanmEncoder, attention_mask, positions
from training.captured import Batch
from training.data import STACK, STRIDE, frame_count


@dataclass(frozen=True, eq=False)
class Layout(Batch):
    """Where everything stands in clips that lie one after the other; all int64.

    stack: (n, 7), the rows of the filterbanks that a stacked frame is made of.   place: (n,), its number in its clip.
    window: (W, 9), the frames of a window; n where it begins before its clip.   number: (W,), its number in its clip.
    longest: how many frames the longest clip has.
    """

    stack: torch.Tensor
    place: torch.Tensor
    window: torch.Tensor
    number: torch.Tensor
    longest: int


def layout(rows: Sequence[int]) -> Layout:
    """Return the layout of clips whose filterbanks have so many rows. Raises ValueError where windows are not whole."""
    counts = [frame_count(one) for one in rows]
    for count in counts:
        if count % NEW_FRAMES:
            raise ValueError(f"A clip of {count} frames has no whole windows of {NEW_FRAMES}.")
    place = np.concatenate([np.arange(count) for count in counts])
    first_row = np.repeat(np.cumsum([0, *rows[:-1]]), counts)
    stack = first_row[:, None] + np.maximum(0, STRIDE * place[:, None] + np.arange(STACK) - (STACK - 1) // 2)
    windows = [count // NEW_FRAMES for count in counts]
    number = np.concatenate([np.arange(count) for count in windows])
    first_frame = np.repeat(np.cumsum([0, *counts[:-1]]), windows)[:, None]
    inside = NEW_FRAMES * number[:, None] + np.arange(WINDOW) - CARRIED_FRAMES
    window = np.where(inside < 0, len(place), first_frame + inside)
    tensors = (torch.from_numpy(part.astype(np.int64)) for part in (stack, place, window, number))
    return Layout(*tensors, longest=max(counts))


@functools.cache
def _tables(count: int, size: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the product's positions and mask for ``count`` frames: kept, because a recorded step can't fetch them."""
    return positions(count, size).to(device, dtype), attention_mask(count // NEW_FRAMES, WINDOW, device)


def encode_together(network: SanmEncoder, frames: torch.Tensor, where: Layout) -> torch.Tensor:
    """Return the output frames, (n, size), of the stacked frames (n, input_size) of several clips."""
    config = network.config
    places, masks = _tables(where.longest, config.input_size, frames.device, frames.dtype)
    embedded = frames * math.sqrt(config.size) + places[where.place]
    x = torch.cat((embedded, embedded.new_zeros(1, config.input_size)))[where.window]
    mask = masks[where.number]
    for layer in (*network.encoders0, *network.encoders):
        x = layer(x, mask, WINDOW)
    out: torch.Tensor = network.after_norm(x[:, CARRIED_FRAMES:].flatten(0, 1))
    return out
