"""What the real model should take on an NVIDIA L40S: computed from sizes and data-sheet figures, not measured.

Every part is (work) / (what the card can do x the share of it that is reached). The shares are assumptions, written
beside the result. Where decoding was measured on a GPU, the share of its ceiling there takes the place of the assumed
one: a share of what that GPU really copies, where here it is one of what the data sheet promises, which is more.
"""

from __future__ import annotations

from typing import Any

from stepaudio.bench.parts import takes_gain

CARD_NAME = "NVIDIA L40S"
CARD = {"bandwidth": 864e9, "fp32": 91.6e12, "tf32": 183e12, "bf16": 362e12}
"""Bytes a second and dense operations a second, from NVIDIA's data sheet."""

DECODE_SHARE, PREFILL_SHARE, FLOW_SHARE, HIFT_SHARE, ENCODER_SHARE = 0.6, 0.4, 0.25, 0.15, 0.15
LAYER_PARAMETERS = 32 * (2 * 3072 * 3072 + 2 * 256 * 3072 + 3 * 8192 * 3072)
HEAD_ROWS = 2867
"""Of the head, on average over a group: 1024 linguistic and 4096 semantic ids, two and three of five."""

PARAFORMER_PARAMETERS, S3_PARAMETERS = 158e6, 129e6
IDS_A_SECOND, FRAMES_A_SECOND = 125 / 3, 50
TEXT_IDS = 120
KEY_BYTES = 2 * 32 * 4 * 64 * 4
"""Keys and values of one position, in float32, as the step keeps them."""

FLOW_STEP_FLOP, FLOW_ATTENTION_FLOP, HIFT_FLOP = 302e6, 65536.0, 30.6e9
"""For a frame and step with guidance; for a pair of frames and step; for a second of sound."""

W4_BYTES = 0.5 + 4 / 128
"""Bytes a weight of W4A16 with groups of 128: half a byte, and scale and zero point for a group."""


TAKES = 16
"""Takes of one text that are decoded side by side."""


def from_decoding(decoding: dict[str, Any] | None) -> dict[str, Any]:
    """Return the projection with what decoding showed on a GPU; None: it was not measured on one."""
    if decoding is None:
        return project()
    gain = takes_gain(decoding) if decoding["batch"] == TAKES else None
    return project(share=decoding["share_of_ceiling"], gain=gain)


def project(
    reference: float = 6.0,
    sound: float = 10.0,
    steps: int = 10,
    share: float | None = None,
    gain: float | None = None,
) -> dict[str, Any]:
    """Return the seconds of every part, and of a miss and a hit, in bfloat16 and with weights of four bits.

    share: of the decode ceiling, as measured. gain: how many times as fast 16 takes are decoded side by side as one
    after another, as measured; where it was not, all 16 are assumed to take no longer than one.
    """
    reached = DECODE_SHARE if share is None else share
    prompt = reference * IDS_A_SECOND + TEXT_IDS
    ids = sound * IDS_A_SECOND
    frames = (reference + sound) * FRAMES_A_SECOND
    head = HEAD_ROWS * 3072 * 2
    windows = reference * 50 / 3 * 9 / 4  # positions: nine of a window for four new frames
    semantic = reference * 25
    encoder = 2 * (PARAFORMER_PARAMETERS * windows + S3_PARAMETERS * semantic) / (CARD["fp32"] * ENCODER_SHARE)
    prefill = 2 * LAYER_PARAMETERS * prompt / (CARD["bf16"] * PREFILL_SHARE)
    flow = steps * (FLOW_STEP_FLOP * frames + FLOW_ATTENTION_FLOP * frames**2) / (CARD["tf32"] * FLOW_SHARE)
    hift = HIFT_FLOP * sound / (CARD["fp32"] * HIFT_SHARE)
    keys = KEY_BYTES * (prompt + ids / 2)
    rows = {}
    for name, weight in (("bfloat16", 2.0), ("W4A16", W4_BYTES)):
        read = LAYER_PARAMETERS * weight + head + keys
        decode = ids * read / (CARD["bandwidth"] * reached)
        hit = prefill + decode + flow + hift
        rows[name] = {
            "bytes_per_id": read,
            "keys_share": keys / read,
            "ceiling_ids_per_second": CARD["bandwidth"] / read,
            "decode": decode,
            "hit": hit,
            "miss": hit + encoder,
            "sixteen_takes_a_sound": prefill / TAKES + decode / (gain or TAKES) + flow + hift,
        }
    return {
        "card": {"name": CARD_NAME, **CARD},
        "reference_seconds": reference,
        "sound_seconds": sound,
        "flow_steps": steps,
        "decode_share": reached,
        "decode_share_measured": share is not None,
        "takes_gain": gain,
        "shares": {"prefill": PREFILL_SHARE, "flow": FLOW_SHARE, "hift": HIFT_SHARE, "encoder": ENCODER_SHARE},
        "encoder": encoder,
        "prefill": prefill,
        "flow": flow,
        "hift": hift,
        "rows": rows,
    }
