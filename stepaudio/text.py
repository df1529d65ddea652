"""Text of a user, cleaned and measured."""

from __future__ import annotations

import re
import unicodedata

from stepaudio.errors import InvalidInput

# The length cap: how many seconds a text may take at the most, so that a runaway generation ends. Speech needs
# about 0.07 s for a letter and 0.25 s for a Chinese character; the cap allows some three times that, and a start.
CAP_START_SECONDS = 3.0
CAP_SECONDS_PER_NARROW = 0.2
CAP_SECONDS_PER_WIDE = 0.7
CAP_SECONDS_PER_TAG = 3.0

_TAG = re.compile(r"\[[A-Za-z][A-Za-z -]*\]")


def clean(text: str, *, what: str, limit: int) -> str:
    """Return the text without control characters and outer white space.

    ``what`` names the field in the message of the InvalidInput that an empty or too long text raises.
    """
    if len(text) > limit:
        raise InvalidInput(f"{what} has {len(text)} characters; the limit is {limit}.")
    # Cc: control characters, Cs: halves of surrogate pairs. Neither can be spoken, and Cs cannot be encoded.
    kept = "".join(c if c == "\n" or unicodedata.category(c) not in ("Cc", "Cs") else " " for c in text).strip()
    if not kept:
        raise InvalidInput(f"{what} is empty.")
    return kept


def seconds_cap(text: str) -> float:
    """Return the longest sound, in seconds, that speaking this text may take (see the constants above)."""
    tags = len(_TAG.findall(text))
    plain = _TAG.sub("", text)
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in plain)
    return (
        CAP_START_SECONDS
        + CAP_SECONDS_PER_TAG * tags
        + CAP_SECONDS_PER_WIDE * wide
        + CAP_SECONDS_PER_NARROW * (len(plain) - wide)
    )
