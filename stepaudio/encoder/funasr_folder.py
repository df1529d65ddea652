"""A FunASR model folder becomes a loaded Paraformer: offline, checked, and with nothing else changed.

funasr builds the network and its tokenizer; the weights are read here, strictly, because funasr's own loader
passes over missing and misshapen tensors. What funasr changes besides (torch's threads, three random
generators, the root logger) is put back.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pkgutil
import random
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # raised by torch.load(weights_only=True); nothing is unpickled here
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from stepaudio import torchaudio_compat
from stepaudio.errors import WeightsError

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, CMVN, TOKENS, SEG_DICT = "config.yaml", "model.pt", "am.mvn", "tokens.json", "seg_dict"
FILES = (CONFIG, WEIGHTS, CMVN, TOKENS, SEG_DICT)

_REGISTERING = (
    "frontends.wav_frontend",
    "tokenizer.char_tokenizer",
    "models.scama.encoder",
    "models.paraformer.cif_predictor",
    "models.paraformer.decoder",
    "models.paraformer_streaming.model",
)
_SUPPORTED = {
    "model": "ParaformerStreaming",
    "encoder": "SANMEncoderChunkOpt",
    "frontend": "WavFrontendOnline",
    "encoder_conf.input_layer": "pe_online",
    "encoder_conf.selfattention_layer_type": "sanm",
    "frontend_conf.fs": 16000,
}
_MAY_BE_LEFT_OUT = {"frontend_conf.fs"}  # funasr's own default is the one that is needed
_BUILD_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, eq=False)
class FunasrModel:
    """A loaded Paraformer as funasr built it, in evaluation mode.

    model: funasr's ParaformerStreaming.   frontend, tokenizer: funasr's, dither 0.
    options: what funasr's ``model.inference(..., **options)`` expects (it holds frontend and tokenizer too).
    can_transcribe: whether the file also held the whole decoder and predictor.
    """

    folder: Path
    model: nn.Module
    frontend: nn.Module
    tokenizer: object
    options: dict[str, Any]
    can_transcribe: bool


def load_funasr(folder: Path, device: torch.device) -> FunasrModel:
    """Return the Paraformer of ``folder`` on ``device``; raises WeightsError naming the file that is at fault."""
    for name in FILES:
        if not (folder / name).is_file():
            raise WeightsError(f"The file {name} is missing in the FunASR folder {folder}.")
    config = _read_config(folder)
    try:
        model, options = build_funasr(config, folder, device)
    except _BUILD_ERRORS as error:
        raise WeightsError(
            f"FunASR cannot build the model of {folder}; its {CONFIG}, {CMVN}, {TOKENS} or {SEG_DICT} "
            f"is damaged or of another model ({type(error).__name__}: {error})."
        ) from error
    frontend = options["frontend"]
    _check_cmvn(frontend, folder)
    complete = _load_weights(model, folder, device)
    return FunasrModel(folder, model, frontend, options["tokenizer"], options, complete)


def load_frontend(folder: Path) -> nn.Module:
    """Return the front end alone (funasr's WavFrontendOnline, dither 0), without reading model.pt.

    Raises WeightsError naming the file that is at fault.
    """
    for name in (CONFIG, CMVN):
        if not (folder / name).is_file():
            raise WeightsError(f"The file {name} is missing in the FunASR folder {folder}.")
    config = _read_config(folder)
    import_automodel()
    online = importlib.import_module("funasr.frontends.wav_frontend").WavFrontendOnline
    try:
        frontend: nn.Module = online(**{**config["frontend_conf"], "cmvn_file": str(folder / CMVN), "dither": 0.0})
    except _BUILD_ERRORS as error:
        raise WeightsError(
            f"FunASR cannot build the front end of {folder}; its {CONFIG} or {CMVN} is damaged or of another model "
            f"({type(error).__name__}: {error})."
        ) from error
    _check_cmvn(frontend, folder)
    return frontend


def _check_cmvn(frontend: Any, folder: Path) -> None:
    """Raise WeightsError where am.mvn did not give a shift and a scale for every feature."""
    if frontend.cmvn is None or tuple(frontend.cmvn.shape) != (2, frontend.output_size()):
        raise WeightsError(
            f"The file {CMVN} in {folder} is damaged: it does not hold {frontend.output_size()} shifts and scales."
        )


def build_funasr(config: Mapping[str, Any], folder: Path, device: torch.device) -> tuple[Any, dict[str, Any]]:
    """Return funasr's model with random weights, and its options, for ``config`` and the small files of ``folder``.

    AutoModel is given the configuration itself, so it looks for nothing on the network.
    """
    settings = {
        **config,
        "tokenizer_conf": {
            **(config.get("tokenizer_conf") or {}),
            "token_list": str(folder / TOKENS),
            "seg_dict": str(folder / SEG_DICT),
        },
        # Dither is noise from an unseeded generator: with it the same sound would get other codes each time.
        "frontend_conf": {**config["frontend_conf"], "cmvn_file": str(folder / CMVN), "dither": 0.0},
        "model_conf": config.get("model_conf") or {},
        "specaug": None,  # for training only
        "init_param": None,
        "model_path": str(folder),
        "device": str(device),
        "disable_pbar": True,
        "ncpu": torch.get_num_threads(),
    }
    with _side_effects_undone(device):
        model, options = import_automodel().build_model(**settings)
    model.eval()
    return model, dict(options)


def _read_config(folder: Path) -> dict[str, Any]:
    """Return config.yaml as a dictionary; raises WeightsError where it is unreadable or of another model."""
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())  # yaml's messages run over several lines
        raise WeightsError(f"The file {CONFIG} in {folder} cannot be read: {what}.") from error
    for path, wanted in _SUPPORTED.items():
        value: Any = config
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None and path in _MAY_BE_LEFT_OUT:
            continue
        if value != wanted:
            raise WeightsError(
                f"The file {CONFIG} in {folder} describes another model: {path} is {value!r}, {wanted!r} is needed."
            )
    return dict(config)


def _load_weights(model: nn.Module, folder: Path, device: torch.device) -> bool:
    """Fill ``model`` from model.pt and return whether all of it was there; its encoder must be."""
    path = folder / WEIGHTS
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, UnpicklingError) as error:
        raise WeightsError(f"The file {WEIGHTS} in {folder} is damaged or not a file of weights.") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict):
        raise WeightsError(f"The file {WEIGHTS} in {folder} holds no tensors by name.")
    own = model.state_dict()
    fitting = {
        name: state[name].to(tensor.dtype)
        for name, tensor in own.items()
        if isinstance(state.get(name), torch.Tensor) and state[name].shape == tensor.shape
    }
    unfit = [name for name in own if name not in fitting]
    for name in unfit:
        if name.startswith("encoder."):
            raise WeightsError(f"The file {WEIGHTS} in {folder} lacks the tensor {name} or has it in another shape.")
    if unfit:
        log.warning("%s lacks %d tensors of the decoder (%s, ...): no transcription.", path, len(unfit), unfit[0])
    model.load_state_dict({**own, **fitting}, strict=True, assign=True)
    return not unfit


def import_automodel() -> Any:
    """Return funasr's AutoModel class, importing only what a streaming Paraformer needs.

    ``import funasr`` imports all of its several hundred modules by walking the package (7 s); for that one
    import the walk finds nothing.
    """
    torchaudio_compat.install()
    if "funasr" not in sys.modules:
        walk = pkgutil.walk_packages
        pkgutil.walk_packages = _walk_nothing
        try:
            importlib.import_module("funasr")
        finally:
            pkgutil.walk_packages = walk
    for name in _REGISTERING:
        importlib.import_module(f"funasr.{name}")
    return importlib.import_module("funasr.auto.auto_model").AutoModel


def _walk_nothing(*args: object, **kwargs: object) -> Iterator[pkgutil.ModuleInfo]:
    """Stand in for pkgutil.walk_packages: no package has any modules."""
    return iter(())


@contextlib.contextmanager
def _side_effects_undone(device: torch.device) -> Iterator[None]:
    """Put back what building a funasr model changes for the whole process."""
    root = logging.getLogger()
    threads, level, handlers = torch.get_num_threads(), root.level, list(root.handlers)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        root.setLevel(level)
        root.handlers[:] = handlers
