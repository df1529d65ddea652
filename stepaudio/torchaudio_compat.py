"""torchaudio beside a CPU build of torch, and the lazy way to reach it.

The last torchaudio wheel (2.11) links CUDA libraries: beside a CPU-only torch ``import torchaudio`` raises
OSError, and a half-imported torchaudio takes transformers and funasr down with it (funasr silently).
Its resampling and its Kaldi filterbank are plain torch, though, and need none of the compiled code. So,
on CPU builds only, a stub takes the place of the one module that loads the shared library. Missing
with it are forced alignment and the RNN-T loss, which nothing here uses.

Whoever needs torchaudio asks :func:`functional`, :func:`transforms` or :func:`kaldi` for the module when
he needs it; whoever imports a library that imports torchaudio calls :func:`install` before.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import NoReturn

import torch

_STUBBED = "torchaudio._extension"


def _fail_if_no_align(function: object) -> object:
    """Stand in for the decorator of the alignment functions: they raise when called."""

    def unavailable(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError("torchaudio's forced alignment needs its compiled extension, which a CPU torch lacks.")

    return unavailable


def _check_cuda_version() -> None:
    """Stand in for the comparison of torch's and torchaudio's CUDA versions: a CPU torch has none."""


def install() -> None:
    """Make ``import torchaudio`` work beside a CPU-only torch; does nothing on CUDA builds or a second time."""
    if torch.version.cuda is not None or _STUBBED in sys.modules:
        return
    stub = ModuleType(_STUBBED)
    for name, value in {
        "_IS_TORCHAUDIO_EXT_AVAILABLE": False,
        "_IS_ALIGN_AVAILABLE": False,
        "fail_if_no_align": _fail_if_no_align,
        "_check_cuda_version": _check_cuda_version,
    }.items():
        setattr(stub, name, value)
    sys.modules[_STUBBED] = stub


def functional() -> ModuleType:
    """Return ``torchaudio.functional``."""
    install()
    return importlib.import_module("torchaudio.functional")


def transforms() -> ModuleType:
    """Return ``torchaudio.transforms``."""
    install()
    return importlib.import_module("torchaudio.transforms")


def kaldi() -> ModuleType:
    """Return ``torchaudio.compliance.kaldi``."""
    install()
    return importlib.import_module("torchaudio.compliance.kaldi")
