"""A lane of its own for work that is not to wait behind other work on the same GPU.

What a thread asks of a GPU goes into its CUDA stream, and by default all threads have the same one: there the vocoder's
thousands of small kernels would each wait for the decode steps that the language model has asked for ahead. In a stream
of its own, of a higher priority, they run between and beside those. A CPU has no streams, and nothing waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Lane:
    """Where a stream of sound is computed; several threads may work in one, and their work stands in one queue.

    Everything that is read in the lane must be there when the lane is made, or be made in it.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # The weights are copied in the other stream, of which this one knows nothing.
            torch.cuda.synchronize(device)
            self._stream = torch.cuda.Stream(device, priority=-1)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Let this thread's work go into the lane as long as the context lasts."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
