"""llm/loading.py: what a folder must hold, and the sentence that says what is wrong with one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stepaudio.errors import WeightsError
from stepaudio.llm.loading import INDEX_FILE, load_step1, read_config
from stepaudio.tiny.llm import SHARD, write_llm

CPU = torch.device("cpu")
LAST = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm")
    write_llm(folder, 0)
    return folder


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    state = load_file(folder / SHARD)
    for name, tensor in changes.items():
        state.pop(name, None)
        if tensor is not None:
            state[name] = tensor
    save_file(state, folder / SHARD)


def refusal(folder: Path) -> str:
    with pytest.raises(WeightsError) as caught:
        load_step1(folder, CPU, torch.float32)
    message = str(caught.value)
    assert str(folder) in message
    assert message.endswith(".")
    return message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_good_folder_loads_in_the_dtype_asked_for(good: Path, dtype: torch.dtype) -> None:
    model = load_step1(good, CPU, dtype)
    state = model.state_dict()
    assert {tensor.dtype for tensor in state.values()} == {dtype}
    for name, tensor in load_file(good / SHARD).items():
        assert torch.equal(state[name], tensor.to(dtype))
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_folder_without_index_is_read_shard_by_shard(folder: Path) -> None:
    expected = load_step1(folder, CPU, torch.float32).state_dict()
    state = load_file(folder / SHARD)
    names = sorted(state)
    (folder / INDEX_FILE).unlink()
    (folder / SHARD).unlink()
    save_file({name: state[name] for name in names[:7]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: state[name] for name in names[7:]}, folder / "model-00002-of-00002.safetensors")
    loaded = load_step1(folder, CPU, torch.float32).state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in names)
    save_file({names[0]: state[names[0]]}, folder / "z.safetensors")
    assert "stands in another file too" in refusal(folder)


def test_the_model_does_not_depend_on_the_file_once_loaded(folder: Path) -> None:
    """safetensors hands out maps of the file: a file replaced in place would change the weights of a running model."""
    model = load_step1(folder, CPU, torch.float32)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = folder / SHARD
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.write(bytes(size))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_a_missing_tensor_is_named_and_the_head_is_never_tied_instead(folder: Path) -> None:
    (folder / INDEX_FILE).unlink()
    edit_tensors(folder, {"lm_head.weight": None})
    assert "lack the tensor lm_head.weight" in refusal(folder)
    edit_tensors(folder, {LAST: None})
    assert "and 1 more" in refusal(folder)


def test_a_tensor_that_the_index_promises_is_looked_for(folder: Path) -> None:
    edit_tensors(folder, {LAST: None})
    assert f"{SHARD} in {folder} lacks the tensor {LAST}, which the index expects" in refusal(folder)


def test_a_superfluous_tensor_is_named(folder: Path) -> None:
    edit_tensors(folder, {"model.extra": torch.zeros(1)})
    assert "holds the tensor model.extra, which Step1 does not have" in refusal(folder)


@pytest.mark.parametrize("tensor", [torch.zeros(3, 64), torch.zeros(128, 64, dtype=torch.int32)])
def test_a_tensor_of_another_shape_or_kind_is_named(folder: Path, tensor: torch.Tensor) -> None:
    edit_tensors(folder, {LAST: tensor})
    message = refusal(folder)
    assert f"The tensor {LAST} of {SHARD}" in message
    assert "config.json asks for floating-point numbers (128, 64)" in message


@pytest.mark.parametrize("keep", [0, 5, 500, -100])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[:keep])
    assert f"The file {SHARD} in {folder} is damaged" in refusal(folder)


def test_missing_files_are_named(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert f"The file {SHARD} is missing in" in refusal(folder)
    (folder / INDEX_FILE).unlink()
    assert "There is no *.safetensors file" in refusal(folder)
    (folder / "config.json").unlink()
    assert "The file config.json" in refusal(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"a": "../b.safetensors"}}'])
def test_a_damaged_index_is_named(folder: Path, content: str) -> None:
    (folder / INDEX_FILE).write_text(content, "utf-8")
    assert INDEX_FILE in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "llama"}, "does not describe a step1 model"),
        ({"hidden_size": None}, "hidden_size in config.json in .* is None, not a positive number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers .* is 0"),
        ({"num_attention_heads": 7}, "do not divide evenly"),
        ({"num_attention_groups": 3}, "do not divide evenly"),
    ],
)
def test_an_unfit_config_is_refused(folder: Path, changes: dict, sentence: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(WeightsError, match=sentence):
        read_config(folder)
