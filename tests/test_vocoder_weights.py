from __future__ import annotations

import ast
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from stepaudio.errors import WeightsError
from stepaudio.vocoder.flow import Flow
from stepaudio.vocoder.hift import HiFT
from stepaudio.vocoder.weights import fill, hift_names, read_state
from tests.vocoder_recordings import REAL_FLOW, REAL_HIFT


def listed(path: Path) -> dict[str, Tensor]:
    """Return tensors without memory, of the names and shapes that a key list gives."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    return {name: torch.empty(ast.literal_eval(shape), device="meta") for name, shape, _ in lines}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def test_the_real_flow_has_exactly_the_names_and_shapes_of_flow_pt(small_files: Path) -> None:
    with torch.device("meta"):
        flow = Flow(REAL_FLOW)
    keys = listed(small_files / "keys_flow.txt")
    assert len(keys) == 605
    assert shapes(flow.state_dict()) == shapes(keys)
    assert sum(p.numel() for p in flow.parameters()) == 153_754_096


def test_the_real_hift_has_exactly_the_names_and_shapes_of_hift_pt(small_files: Path) -> None:
    with torch.device("meta"):
        hift = HiFT(REAL_HIFT)
    keys = listed(small_files / "keys_hift.txt")
    assert len(keys) == 328
    assert sum(value.numel() for value in keys.values()) == 20_821_295
    folded = hift_names(keys)
    assert len(folded) == 246
    assert shapes(hift.state_dict()) == shapes(folded)


@pytest.mark.parametrize("layer", [nn.Conv1d(3, 5, 7), nn.ConvTranspose1d(3, 5, 7)])
def test_folding_gives_the_weight_that_weight_normalisation_computes(layer: nn.Module) -> None:
    torch.manual_seed(0)
    normed = weight_norm(layer)
    with torch.no_grad():
        normed.parametrizations.weight.original0.uniform_(0.5, 2)
    folded = hift_names({f"ups.0.{key}": value for key, value in normed.state_dict().items()})
    assert set(folded) == {"ups.0.weight", "ups.0.bias"}
    torch.testing.assert_close(folded["ups.0.weight"], normed.weight.detach())


def test_the_prefix_of_a_trainer_is_taken_off() -> None:
    state = {"generator.conv_pre.bias": torch.ones(2), "generator.m_source.l_linear.weight": torch.ones(1, 9)}
    assert set(hift_names(state)) == {"conv_pre.bias", "m_source.l_linear.weight"}


def test_a_normalised_weight_that_lacks_its_half_is_not_taken() -> None:
    alone = {"conv_pre.parametrizations.weight.original0": torch.ones(4, 1, 1)}
    assert hift_names(alone).keys() == alone.keys()
    apart = alone | {"conv_pre.parametrizations.weight.original1": torch.ones(5, 2, 3)}
    assert hift_names(apart).keys() == apart.keys()


def test_filling_gives_the_weights_and_leaves_nothing_to_train() -> None:
    with torch.device("meta"):
        layer = nn.Sequential(nn.Linear(2, 3), nn.Dropout())
    state = {"0.weight": torch.ones(3, 2), "0.bias": torch.zeros(3)}
    fill(layer, state, Path("some/flow.pt"))
    assert torch.equal(layer[0].weight, torch.ones(3, 2))
    assert not layer.training
    assert not any(parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": None}, "weight is missing"),
        ({"more": torch.ones(1)}, "more is unknown"),
        ({"bias": torch.zeros(4)}, r"bias has the shape \(4,\) instead of \(3,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named_with_file_and_folder(
    change: dict[str, Tensor | None], sentence: str
) -> None:
    state = {"weight": torch.ones(3, 2), "bias": torch.zeros(3)} | change
    with pytest.raises(WeightsError, match=rf"^flow\.pt in some/folder does not fit .*: {sentence}\.$"):
        fill(nn.Linear(2, 3), {k: v for k, v in state.items() if v is not None}, Path("some/folder/flow.pt"))


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "flow.pt")
    assert read_state(tmp_path / "flow.pt")["a"].dtype == torch.float32


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"^flow\.pt is missing in .*{tmp_path.name}\.$"):
        read_state(tmp_path / "flow.pt")


@pytest.mark.parametrize("content", [[1, 2], {"a": 5}, {1: torch.ones(1)}, {"a": torch.ones(1, dtype=torch.int64)}])
def test_a_file_of_other_things_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "flow.pt")
    with pytest.raises(WeightsError, match="holds something other than named weights"):
        read_state(tmp_path / "flow.pt")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.path,)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Hostile(tmp_path / "made")}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"a": Hostile(tmp_path / "made")}, protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(WeightsError, match="is damaged or no weights file"):
            read_state(tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_damage_anywhere_is_an_error_of_ours_or_harmless(tmp_path: Path) -> None:
    """Truncated and overwritten files; what still loads has every value unchanged, for checksums are checked."""
    path = tmp_path / "flow.pt"
    torch.save({"a": torch.arange(100.0), "b": torch.ones(7, 3)}, path)
    whole = path.read_bytes()
    expected = read_state(path)
    rng = np.random.default_rng(0)
    refused = 0
    for trial in range(300):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(0, len(whole))]
        else:
            at = int(rng.integers(0, len(whole)))
            damaged[at : at + 8] = rng.bytes(8)
        path.write_bytes(damaged)
        try:
            state = read_state(path)
        except WeightsError:
            refused += 1
        else:
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert refused > 150


def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flow.pt").mkdir()
    with pytest.raises(WeightsError, match=r"flow\.pt in .* is damaged"):
        read_state(tmp_path / "flow.pt")
