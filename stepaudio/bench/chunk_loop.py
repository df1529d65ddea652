"""The chunk loop of the reference implementation, run with funasr's own classes: what ours is measured against.

Not part of the product. It walks through the sound in chunks of 3840 samples (240 ms), carrying the state of front
end and encoder from one to the next, which is what ``ParaformerStreaming.encode_chunk`` does for each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from stepaudio.types import FloatArray

CHUNK_SIZE = [0, 4, 5]
"""Frames looked back, new and carried over, in funasr's words."""

ENCODER_LOOK_BACK = 4


def chunk_loop(encoder: Any, frontend: Any, samples: FloatArray) -> FloatArray:
    """Return the frames, float32 (n, D), that the loop makes of 16 kHz ``samples``.

    encoder: funasr's SANMEncoderChunkOpt.   frontend: its WavFrontendOnline; its dither must be 0.
    """
    hop = frontend.frame_shift * frontend.fs // 1000
    stride = CHUNK_SIZE[1] * frontend.lfr_n * hop
    heard: dict[str, Any] = {}
    device = next(encoder.parameters()).device
    state = {
        "start_idx": 0,
        "chunk_size": CHUNK_SIZE,
        "encoder_chunk_look_back": ENCODER_LOOK_BACK,
        "opt": None,
        "feats": torch.zeros(1, CHUNK_SIZE[0] + CHUNK_SIZE[2], frontend.output_size(), device=device),
        "tail_chunk": False,
    }
    frontend.init_cache(heard)
    frames = []
    count = len(samples) // stride + 1
    with torch.inference_mode():
        for index in range(count):
            chunk, final = samples[index * stride : (index + 1) * stride], index == count - 1
            if final and not _tail_is_kept(frontend, heard, len(chunk)):
                break
            speech, lengths = frontend(torch.from_numpy(chunk)[None], [len(chunk)], cache=heard, is_final=final)
            # forward_chunk scales its input in place; what the front end returned must not change.
            out, _, _ = encoder.forward_chunk(speech.to(device, copy=True), lengths, cache=state)
            frames.append(out[0, -int(lengths[0]) :])
    if not frames:
        return np.zeros((0, encoder.output_size()), np.float32)
    result: FloatArray = torch.cat(frames).cpu().numpy()
    return result


def _tail_is_kept(frontend: Any, heard: dict[str, Any], samples: int) -> bool:
    """Return whether the last, partial chunk gives frames in the reference implementation (funasr gives more)."""
    pending = samples + (heard["input_cache"].shape[-1] if heard["input_cache"].numel() else 0)
    fresh = frontend.compute_frame_num(pending, frontend.frame_sample_length, frontend.frame_shift_sample_length)
    waiting = heard["lfr_splice_cache"][0].shape[0] if heard["lfr_splice_cache"] else (frontend.lfr_m - 1) // 2
    return samples > 0 and fresh > 0 and fresh + waiting >= frontend.lfr_m
