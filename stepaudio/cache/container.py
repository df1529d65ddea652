"""One cache entry as bytes: a fixed header, then the four arrays, little-endian, one after the other.

    magic 8s | format version u32 | SHA-256 of all that follows 32s
    key 32s | encode seconds f64 | created f64 | L, S, F, M, D u32
    linguistic i64 (L,) | semantic i64 (S,) | mel f32 (F, M) | speaker f32 (D,)

There is nothing to parse but numbers: no names, no types, no objects, so that no bytes, wherever they come
from, can do more than be refused.
"""

from __future__ import annotations

import hashlib
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepaudio.types import ReferenceEncoding

FORMAT_VERSION = 1
# 30 s of reference make half a megabyte; what is larger than this (17 min) is neither kept nor read.
MAX_BYTES = 16 * 2**20

_MAGIC = b"STEPENC\n"
_OUTER = struct.Struct("<8sI32s")
_INNER = struct.Struct("<32sdd5I")


class DamagedEntry(Exception):
    """These bytes are not an entry that can be used; the message says why."""


@dataclass(frozen=True, eq=False)
class Entry:
    """What is kept for one key: the encoding, the seconds it took, when it was made (Unix time, to tell only)."""

    key: str
    encoding: ReferenceEncoding
    encode_seconds: float
    created: float


def pack(entry: Entry) -> bytes:
    """Return the entry as bytes.

    Raises DamagedEntry for an encoding that could not be read back: one that ``unpack`` would refuse, or too large.
    """
    encoding = entry.encoding
    _check_kinds(encoding)
    _check_numbers(encoding, entry.encode_seconds)
    sizes = (len(encoding.linguistic), len(encoding.semantic), *encoding.mel.shape, len(encoding.speaker))
    inner = _INNER.pack(bytes.fromhex(entry.key), entry.encode_seconds, entry.created, *sizes)
    arrays = (
        encoding.linguistic.astype("<i8", copy=False),
        encoding.semantic.astype("<i8", copy=False),
        encoding.mel.astype("<f4", copy=False),
        encoding.speaker.astype("<f4", copy=False),
    )
    size = _OUTER.size + _INNER.size + sum(array.nbytes for array in arrays)
    if size > MAX_BYTES:
        raise DamagedEntry(f"it has {size} bytes, and at most {MAX_BYTES} are kept")
    body = b"".join([inner, *(array.tobytes() for array in arrays)])
    return _OUTER.pack(_MAGIC, FORMAT_VERSION, hashlib.sha256(body).digest()) + body


def unpack(data: bytes, key: str) -> Entry:
    """Return the entry that ``pack`` made for this key; its arrays are fresh copies of the caller's own.

    Raises DamagedEntry for anything else: truncated, altered, another version, another key, not ours at all.
    """
    if len(data) < _OUTER.size + _INNER.size:
        raise DamagedEntry(f"it has {len(data)} bytes, which is too short")
    magic, version, digest = _OUTER.unpack_from(data)
    if magic != _MAGIC:
        raise DamagedEntry("it was not written by this program")
    if version != FORMAT_VERSION:
        raise DamagedEntry(f"it has format version {version}, and this program reads {FORMAT_VERSION}")
    body = memoryview(data)[_OUTER.size :]
    if hashlib.sha256(body).digest() != digest:
        raise DamagedEntry("its checksum is wrong, so it is truncated or altered")
    raw_key, seconds, created, *sizes = _INNER.unpack_from(body)
    if raw_key.hex() != key:
        raise DamagedEntry("it belongs to another key")
    encoding = _arrays(body[_INNER.size :], sizes)
    _check_numbers(encoding, seconds)
    return Entry(key, encoding, seconds, created)


def _arrays(payload: memoryview, sizes: list[int]) -> ReferenceEncoding:
    linguistic, semantic, frames, bins, dim = sizes
    if len(payload) != 8 * (linguistic + semantic) + 4 * (frames * bins + dim):
        raise DamagedEntry("its arrays do not fill it exactly")
    offset = 0

    def take(dtype: str, *shape: int) -> npt.NDArray[Any]:
        nonlocal offset
        kind, count = np.dtype(dtype), math.prod(shape)
        array = np.frombuffer(payload, kind, count, offset).reshape(shape)
        offset += count * kind.itemsize
        return array.astype(kind.newbyteorder("="))  # a copy: the caller may write into it

    return ReferenceEncoding(
        linguistic=take("<i8", linguistic),
        semantic=take("<i8", semantic),
        mel=take("<f4", frames, bins),
        speaker=take("<f4", dim),
    )


def _check_kinds(encoding: ReferenceEncoding) -> None:
    """Refuse arrays of another kind than ReferenceEncoding declares, rather than convert them unseen."""
    kinds = (
        ("linguistic", encoding.linguistic, np.int64, 1),
        ("semantic", encoding.semantic, np.int64, 1),
        ("mel", encoding.mel, np.float32, 2),
        ("speaker", encoding.speaker, np.float32, 1),
    )
    for name, array, dtype, ndim in kinds:
        if array.dtype != dtype or array.ndim != ndim:
            raise DamagedEntry(f"its {name} is {array.dtype} of shape {array.shape}")


def _check_numbers(encoding: ReferenceEncoding, encode_seconds: float) -> None:
    if not (math.isfinite(encode_seconds) and encode_seconds >= 0):
        raise DamagedEntry(f"its encoding is said to have taken {encode_seconds} s")
    if 0 in (encoding.linguistic.size, encoding.semantic.size, encoding.mel.size, encoding.speaker.size):
        raise DamagedEntry("one of its arrays is empty")
    if encoding.linguistic.min() < 0 or encoding.semantic.min() < 0:
        raise DamagedEntry("it holds negative codes")
    if not (np.isfinite(encoding.mel).all() and np.isfinite(encoding.speaker).all()):
        raise DamagedEntry("it holds numbers that are not finite")
