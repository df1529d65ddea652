"""The Gaussian noise that flow and generator begin with: one seed gives the same on every machine and device.

Drawn on the CPU. A stream takes its noise piece by piece and still gets what one draw of the whole gives.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# The numbers of the independent noises that one seed gives.
FLOW_NOISE, SOURCE_NOISE = 0, 1


class Noise:
    """One endless noise of ``channels``, taken from its beginning on.

    torch draws normal numbers in blocks of 16, so pieces join to the whole only where length * channels of every
    piece is a multiple of 16: any number of mel frames of 80 channels, any number of frames of 480 samples.
    """

    def __init__(self, seed: int, stream: int, channels: int) -> None:
        state = np.random.SeedSequence(seed % 2**64, spawn_key=(stream,)).generate_state(1, np.uint64)
        self._generator = torch.Generator().manual_seed(int(state[0]))
        self._channels = channels

    def take(self, length: int) -> Tensor:
        """Return the next noise, float32 (1, length, channels)."""
        return torch.randn((1, length, self._channels), generator=self._generator)


def draw_noise(seed: int, stream: int, length: int, channels: int) -> Tensor:
    """Return Gaussian noise float32 (1, length, channels), the same on every machine and device.

    ``stream`` tells independent noises of one seed apart. Time runs slowest: a longer draw begins with the
    shorter one.
    """
    return Noise(seed, stream, channels).take(length)
