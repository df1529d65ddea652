"""The variants of the language model: which of them can be run here, and why not the others."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from stepaudio.weights import AWQ, BASE, BNB_INT8, BNB_NF4, EDITX, EDITX_AWQ, WeightsFolder

BITSANDBYTES = "bitsandbytes"
VARIANTS = (BASE, AWQ, BNB_INT8, BNB_NF4)


@dataclass(frozen=True)
class Variant:
    """One variant: its name in the settings, whether it could run and whether it does.

    title, reason: by language code; reason: why it cannot run or what would start it, empty for the one that runs.
    """

    name: str
    title: Mapping[str, str]
    available: bool
    running: bool
    reason: Mapping[str, str]


_TITLES: Mapping[str, Mapping[str, str]] = {
    BASE: {"en": "base: full precision", "zh": "base：完整精度"},
    AWQ: {"en": "awq: 4 bits, official folder", "zh": "awq：4 位，官方文件夹"},
    BNB_INT8: {"en": "bnb-int8: 8 bits by bitsandbytes", "zh": "bnb-int8：由 bitsandbytes 压缩为 8 位"},
    BNB_NF4: {"en": "bnb-nf4: 4 bits by bitsandbytes", "zh": "bnb-nf4：由 bitsandbytes 压缩为 4 位"},
}


def variants(weights: WeightsFolder) -> list[Variant]:
    """Return all variants, of which the one that ``weights`` says is running."""
    return [_variant(name, weights) for name in VARIANTS]


def _variant(name: str, weights: WeightsFolder) -> Variant:
    title = _TITLES[name]
    if name == weights.variant:
        return Variant(name, title, True, True, {"en": "", "zh": ""})
    folder = EDITX_AWQ if name == AWQ else EDITX
    if not (weights.path / folder).is_dir():
        return Variant(
            name,
            title,
            False,
            False,
            {"en": f"The folder {folder} is not there.", "zh": f"文件夹 {folder} 不存在。"},
        )
    if name in (BNB_INT8, BNB_NF4) and importlib.util.find_spec(BITSANDBYTES) is None:
        reason = {
            "en": f"{BITSANDBYTES} is not installed (pip install {BITSANDBYTES}).",
            "zh": f"未安装 {BITSANDBYTES}（pip install {BITSANDBYTES}）。",
        }
        return Variant(name, title, False, False, reason)
    reason = {
        "en": f"Runs after a restart with STEPAUDIO_VARIANT={name}.",
        "zh": f"设置 STEPAUDIO_VARIANT={name} 并重启后可用。",
    }
    return Variant(name, title, True, False, reason)
