"""How mini's weights are stored: what the files say is what was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from stepaudio.vocoder.weights import read_state
from training.flow import Trainee
from training.sizes import flow_config
from training.stored import as_bytes, compact, half, timeless


def test_a_weight_of_bytes_has_127_steps_either_way_of_each_outputs_largest() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 30, 3) * torch.tensor([1e-3, 1, 1, 10, 0])[:, None, None]
    found = as_bytes(weight)
    for one, was in zip(found, weight, strict=True):
        step = float(was.abs().max()) / 127
        torch.testing.assert_close(one, was, atol=step / 2 + 1e-9, rtol=0)
        assert len(one.unique()) <= 255
    torch.testing.assert_close(as_bytes(found), found)
    assert torch.equal(as_bytes(weight[0, 0]), weight[0, 0])  # a vector stays as it is


def test_an_onnx_file_stores_as_bytes_what_was_rounded_so_and_all_else_halved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Sequential(
        torch.nn.Linear(80, 200), torch.nn.Unflatten(1, (1, -1)), torch.nn.Conv1d(1, 300, 5), torch.nn.Tanh()
    ).eval()
    path, x = tmp_path / "one.onnx", torch.randn(3, 80)
    sizes, found = [], []
    for rounded in (False, True):
        for weight in layer.parameters():
            weight.data = as_bytes(weight.data) if rounded else weight.data
        with pytest.warns(DeprecationWarning, match="legacy"):
            torch.onnx.export(layer, (x,), str(path), input_names=["x"], output_names=["y"], dynamo=False)
        whole = path.stat().st_size
        compact(path)
        sizes.append(path.stat().st_size / whole)
        (out,) = onnxruntime.InferenceSession(path).run(None, {"x": x.numpy()})
        found.append(float(np.abs(out - layer(x).detach().numpy()).max()))
    assert sizes[0] == pytest.approx(0.5, abs=0.05)
    assert sizes[1] == pytest.approx(0.25, abs=0.1)
    assert found[0] < 3e-3
    assert found[1] < 1e-3


def test_a_flow_without_time_says_at_time_0_what_it_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainee = Trainee(flow_config()).eval()
    with torch.no_grad():
        for name, value in trainee.named_parameters():
            if "adaLN" in name or "t_embedder" in name:
                value.normal_(std=0.1)
    trainee.load_state_dict({key: value.half().float() for key, value in trainee.state_dict().items()})
    mixed, conditions = torch.randn(2, 20, 80), torch.randn(2, 20, 240)
    sizes, said = [], []
    for stored in (half, timeless):
        torch.save(stored(trainee.flow.state_dict()), tmp_path / "flow.pt")
        sizes.append((tmp_path / "flow.pt").stat().st_size)
        again = Trainee(flow_config()).eval()
        again.flow.load_state_dict(read_state(tmp_path / "flow.pt"))
        with torch.inference_mode():
            said.append(again(mixed, conditions, torch.zeros(2)))
    assert sizes[1] < 0.82 * sizes[0]
    torch.testing.assert_close(said[1], said[0], atol=0.03, rtol=0.03)
    assert float(said[0].std()) > 0.5
    once = timeless(again.flow.state_dict())
    assert all(torch.equal(one.float(), again.flow.state_dict()[name]) for name, one in once.items())
