"""Linguistic codes: the nearest centroid to each output frame of the streaming Paraformer's encoder.

The code stream runs at 16.67 Hz and has 1024 codes. Three steps: filterbank frames stacked and normalised as
the model's online front end does it, the encoder over all windows at once (sanm.py), the nearest centroid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepaudio import torchaudio_compat
from stepaudio.device import without_tf32
from stepaudio.encoder.exported import OnnxNetwork
from stepaudio.encoder.funasr_folder import FunasrModel, load_funasr
from stepaudio.encoder.sanm import NEW_FRAMES, SanmConfig, SanmEncoder, round_products
from stepaudio.errors import WeightsError
from stepaudio.features import FULL_SCALE
from stepaudio.tokens import LINGUISTIC_CODES
from stepaudio.types import FloatArray, IntArray


@dataclass(frozen=True, eq=False)
class StackedFbank:
    """The front end of the model: Kaldi's log filterbank, frames stacked, shifted and scaled.

    frame_length, frame_shift: milliseconds.   stack: filterbank frames in one output frame, every ``stride``-th.
    shift, scale: float32 (bins * stack,), or None where the model has no normalisation.
    """

    rate: int
    window: str
    bins: int
    frame_length: float
    frame_shift: float
    stack: int
    stride: int
    shift: torch.Tensor | None
    scale: torch.Tensor | None

    @classmethod
    def of(cls, frontend: Any) -> StackedFbank:
        """Return the front end with the parameters of funasr's WavFrontendOnline."""
        shift, scale = (None, None) if frontend.cmvn is None else frontend.cmvn
        return cls(
            rate=frontend.fs,
            window=frontend.window,
            bins=frontend.n_mels,
            frame_length=frontend.frame_length,
            frame_shift=frontend.frame_shift,
            stack=frontend.lfr_m,
            stride=frontend.lfr_n,
            shift=shift,
            scale=scale,
        )

    def fbank_count(self, samples: int) -> int:
        """Return how many filterbank frames fit into ``samples`` samples."""
        length, hop = self.frame_length * self.rate // 1000, self.frame_shift * self.rate // 1000
        return int((samples - length) // hop + 1) if samples >= length else 0

    def count(self, samples: int) -> int:
        """Return how many stacked frames the chunk loop makes of ``samples`` samples.

        Every whole window gives four. What is left gives frames only if, with the filterbank frames still
        waiting to be stacked, it fills one stack: a shorter tail (under 55 ms) is lost.
        """
        window = int(NEW_FRAMES * self.stride * self.frame_shift * self.rate // 1000)
        windows = samples // window
        before = self.fbank_count(windows * window)
        waiting = self._padding + before - windows * NEW_FRAMES * self.stride
        tail = waiting + self.fbank_count(samples) - before
        return windows * NEW_FRAMES + (-(-(tail - self._padding) // self.stride) if tail >= self.stack else 0)

    @property
    def _padding(self) -> int:
        """Copies of the first filterbank frame that stand before it."""
        return (self.stack - 1) // 2

    def __call__(self, samples: FloatArray) -> torch.Tensor:
        """Return the stacked frames, float32 (count(N), bins * stack), of ``samples`` (N,) in [-1, 1]."""
        count = self.count(len(samples))
        if count == 0:
            return torch.zeros(0, self.bins * self.stack)
        bank = torchaudio_compat.kaldi().fbank(
            torch.from_numpy(samples)[None] * FULL_SCALE,
            num_mel_bins=self.bins,
            frame_length=self.frame_length,
            frame_shift=self.frame_shift,
            dither=0.0,
            energy_floor=0.0,
            window_type=self.window,
            sample_frequency=self.rate,
        )
        needed = (count - 1) * self.stride + self.stack
        missing = max(0, needed - self._padding - len(bank))
        bank = torch.cat((bank[:1].expand(self._padding, -1), bank, bank[-1:].expand(missing, -1)))
        stacked = bank.unfold(0, self.stack, self.stride)[:count].transpose(1, 2).flatten(1)
        if self.shift is None or self.scale is None:
            return stacked
        return (stacked + self.shift) * self.scale  # (n, bins * stack)


class LinguisticEncoder:
    """16 kHz samples to linguistic codes.

    The numbers are those of the chunk loop of the reference implementation with its dither switched off; the same
    samples always give the same codes. ``funasr`` is the loaded model that this was made from, if any.

    dtype: precision of the network. In bfloat16 it is that of the matrix products alone, see sanm.round_products.
    """

    def __init__(
        self,
        fbank: StackedFbank,
        network: SanmEncoder | OnnxNetwork,
        centroids: FloatArray,
        *,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        funasr: FunasrModel | None = None,
    ) -> None:
        self.device, self.dtype, self.funasr = device, dtype, funasr
        self.config = network.config
        self._fbank = fbank
        self._precision = torch.promote_types(dtype, torch.float32)
        network = network.to(device, self._precision).eval()
        if isinstance(network, SanmEncoder) and dtype != self._precision:
            network = round_products(network, dtype)
        self._network = network
        # Distances in float64: rounding (or TF32) must not decide between two centroids that are nearly as close.
        self._centroids = torch.from_numpy(centroids).to(device, torch.float64)
        self._half_norms = self._centroids.square().sum(1) / 2

    @property
    def provider(self) -> str | None:
        """The ONNX Runtime provider that the network runs with, None where torch runs it."""
        return self._network.provider if isinstance(self._network, OnnxNetwork) else None

    def frames(self, samples: FloatArray) -> FloatArray:
        """Return the encoder's output frames, float32 (n, D), of 16 kHz ``samples``."""
        with torch.inference_mode():
            out: FloatArray = self._run(samples).float().cpu().numpy()
        return out

    def encode(self, samples: FloatArray) -> IntArray:
        """Return the codes, int64 (n,), of 16 kHz ``samples``, at 16.67 a second; too short a sound has none."""
        with torch.inference_mode():
            return self._nearest(self._run(samples))

    def nearest(self, frames: FloatArray) -> IntArray:
        """Return the codes, int64 (n,), of output frames (n, D)."""
        with torch.inference_mode():
            return self._nearest(torch.from_numpy(frames).to(self.device))

    def margins(self, frames: FloatArray) -> FloatArray:
        """Return for output frames (n, D) how much farther the second nearest centroid is, float32 (n,)."""
        with torch.inference_mode():
            distances = torch.cdist(torch.from_numpy(frames).to(self.device).double(), self._centroids)
            nearest = distances.topk(2, dim=1, largest=False).values
            out: FloatArray = (nearest[:, 1] - nearest[:, 0]).float().cpu().numpy()
        return out

    def _nearest(self, frames: torch.Tensor) -> IntArray:
        # |frame - centroid|^2 without |frame|^2, halved: what is left decides which is nearest.
        codes: IntArray = (self._half_norms - frames.double() @ self._centroids.T).argmin(dim=1).cpu().numpy()
        return codes

    def _run(self, samples: FloatArray) -> torch.Tensor:
        with without_tf32(self.device):
            frames: torch.Tensor = self._network(self._fbank(samples).to(self.device, self._precision))
        return frames


def load_linguistic(
    folder: Path, centroids: Path, *, device: torch.device, dtype: torch.dtype = torch.float32
) -> LinguisticEncoder:
    """Return the encoder of a FunASR folder and a file of centroids; raises WeightsError naming what is at fault."""
    funasr = load_funasr(folder, device)
    network = window_encoder(funasr.model.encoder, folder)
    codebook = load_centroids(centroids, network.config.size)
    fbank = StackedFbank.of(funasr.frontend)
    return LinguisticEncoder(fbank, network, codebook, device=device, dtype=dtype, funasr=funasr)


def load_centroids(path: Path, size: int) -> FloatArray:
    """Return the centroids, float32 (1024, size); raises WeightsError naming the file where it does not hold them."""
    if not path.is_file():
        raise WeightsError(f"The file {path.name} is missing in {path.parent}.")
    try:
        centroids = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(f"The file {path.name} in {path.parent} is damaged or not a file of centroids.") from error
    if centroids.shape != (LINGUISTIC_CODES, size) or centroids.dtype.kind != "f":
        raise WeightsError(
            f"The file {path.name} in {path.parent} holds {centroids.dtype} {centroids.shape} "
            f"where {LINGUISTIC_CODES} centroids of {size} numbers are needed."
        )
    out: FloatArray = np.ascontiguousarray(centroids, np.float32)
    return out


def window_encoder(encoder: Any, folder: Path) -> SanmEncoder:
    """Return our network with the sizes and the very tensors of funasr's SANMEncoderChunkOpt."""
    first = encoder.encoders0[0]
    if not encoder.normalize_before or first.concat_after:
        raise WeightsError(f"The encoder described in {folder} is of a kind that is not supported (not pre-norm).")
    config = SanmConfig(
        input_size=first.in_size,
        size=first.size,
        heads=first.self_attn.h,
        linear_units=first.feed_forward.w_1.out_features,
        blocks=len(encoder.encoders0) + len(encoder.encoders),
        kernel_size=first.self_attn.fsmn_block.kernel_size[0],
        left_context=first.self_attn.pad_fn.padding[0],
        norm_eps=first.norm1.eps,
    )
    with torch.device("meta"):
        network = SanmEncoder(config)
    network.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    return network.requires_grad_(False)
