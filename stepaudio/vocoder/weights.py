"""Puts the tensors of ``flow.pt`` and ``hift.pt`` into the networks, strictly."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # only to be caught: torch.load refuses with it what is not a tensor

import torch
from torch import Tensor, nn

from stepaudio.errors import WeightsError

FLOW_NAME, HIFT_NAME = "flow.pt", "hift.pt"

HIFT_PREFIX = "generator."  # some repositories have saved the generator inside its trainer
# How torch names the length and the direction of a weight under weight normalisation; HiFT has these names,
# BigVGAN those of older versions.
LENGTH, DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
OLD_LENGTH, OLD_DIRECTION = ".weight_g", ".weight_v"
# What names of weights begin with in one of the two kinds of sound generator alone.
MARKS = {"HiFTGenerator": ("f0_predictor.", "m_source."), "BigVGAN": ("activation_post.", "resblocks.0.activations.")}


DAMAGE = (
    *(OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError),
    *(UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error),
)
"""What reading a file that is no intact archive of tensors may raise, in torch and in zipfile."""


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file that torch.save wrote, as float32 on the CPU.

    Raises WeightsError for a file that is missing, damaged, or holds anything but named floating tensors.
    """
    try:
        _check(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise WeightsError(f"{path.name} is missing in {path.parent}.") from error
    except DAMAGE as error:
        raise WeightsError(f"{path.name} in {path.parent} is damaged or no weights file; fetch it again.") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) and value.is_floating_point() for key, value in state.items()
    ):
        raise WeightsError(f"{path.name} in {path.parent} holds something other than named weights.")
    return {key: value.float() for key, value in state.items()}


def _check(path: Path) -> None:
    """Raise BadZipFile unless every part of the archive has its checksum.

    torch.load verifies none: a file that was damaged on the way would be loaded as it is, and be heard as noise.
    """
    with zipfile.ZipFile(path) as archive:
        broken = archive.testzip()
    if broken is not None:
        raise zipfile.BadZipFile(broken)


def hift_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of hift.pt under the names of the modules HiFT or BigVGAN.

    The prefix ``generator.`` goes, and every weight that is stored normalised, as a length g and a direction
    v, becomes w = g * v / |v|, the norm taken over all dimensions but the first. At inference that is all the
    normalisation there is, so the network is built without it. A pair that does not fit together stays as it
    is, under names that no module has.
    """
    names = {key.removeprefix(HIFT_PREFIX): value for key, value in state.items()}
    for ends in ((LENGTH, DIRECTION), (OLD_LENGTH, OLD_DIRECTION)):
        for stem in [key.removesuffix(ends[0]) for key in names if key.endswith(ends[0])]:
            length, direction = (names.get(stem + end) for end in ends)
            if length is None or direction is None or length.shape != weight_lengths(direction).shape:
                continue
            del names[stem + ends[0]], names[stem + ends[1]]
            names[f"{stem}.weight"] = direction * (length / weight_lengths(direction))
    return names


def check_kind(state: Mapping[str, Tensor], kind: str, path: Path) -> None:
    """Raise WeightsError, naming ``path``, if the weights are those of another kind of sound generator.

    state: as hift_names returns it; kind: that of the config, a key of MARKS.
    """
    found = next((name for name, marks in MARKS.items() if any(key.startswith(marks) for key in state)), kind)
    if found != kind:
        raise WeightsError(
            f"{path.name} in {path.parent} does not fit the cosyvoice.yaml beside it: the weights are those of "
            f"{found}, but the yaml names {kind}; both files must come from the same release."
        )


def weight_lengths(weight: Tensor) -> Tensor:
    """Return the norms of a weight over all dimensions but the first, which are kept with size 1."""
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.dim())), keepdim=True)


def fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Give ``module``, which may stand on the meta device, the tensors of ``state`` and make it ready for use.

    Raises WeightsError, naming ``path``, unless names and shapes are exactly the module's.
    """
    expected = module.state_dict()
    problem = None
    if missing := expected.keys() - state.keys():
        problem = f"{min(missing)} is missing"
    elif unknown := state.keys() - expected.keys():
        problem = f"{min(unknown)} is unknown"
    elif wrong := [key for key in expected if expected[key].shape != state[key].shape]:
        key = wrong[0]
        problem = f"{key} has the shape {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
    if problem is not None:
        raise WeightsError(f"{path.name} in {path.parent} does not fit the cosyvoice.yaml beside it: {problem}.")
    module.load_state_dict(dict(state), strict=True, assign=True)
    module.requires_grad_(False).eval()
