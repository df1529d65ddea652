"""Many clips through the window-parallel encoder at once, for training.

The product's network (stepaudio.encoder.sanm) runs all windows of one clip together. Here the windows of several
clips stand one after the other, through the product's own layers: the mask ends each clip's look-back at its own
first window, so the numbers are those of clip after clip. Clips must have whole windows (data.heard pads them).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from stepaudio.encoder.sanm import CARRIED_FRAMES, NEW_FRAMES, WINDOW, SanmEncoder, attention_mask, positions


def encode_together(network: SanmEncoder, clips: list[torch.Tensor]) -> torch.Tensor:
    """Return the output frames, (sum of n, size), of clips of stacked frames (n, input_size), n a multiple of 4."""
    config = network.config
    longest = max(len(clip) for clip in clips)
    places = positions(longest, config.input_size).to(clips[0])
    windows, masks = [], []
    for clip in clips:
        if len(clip) % NEW_FRAMES:
            raise ValueError(f"A clip of {len(clip)} frames has no whole windows of {NEW_FRAMES}.")
        embedded = F.pad(clip * math.sqrt(config.size) + places[: len(clip)], (0, 0, CARRIED_FRAMES, 0))
        windows.append(embedded.unfold(0, WINDOW, NEW_FRAMES).transpose(1, 2))  # (W, 9, input_size)
        masks.append(attention_mask(len(windows[-1]), WINDOW, clip.device))
    x, mask = torch.cat(windows), torch.cat(masks)
    for layer in (*network.encoders0, *network.encoders):
        x = layer(x, mask, WINDOW)
    out: torch.Tensor = network.after_norm(x[:, CARRIED_FRAMES:].flatten(0, 1))
    return out
