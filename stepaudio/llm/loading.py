"""A folder of safetensors becomes a Step1 model, strictly: every tensor must be there, fit and be used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from stepaudio.errors import WeightsError
from stepaudio.llm.compressed import read_weight, scheme_of, unpacked_names
from stepaudio.llm.quantised import QuantisedLinear

if TYPE_CHECKING:
    from stepaudio.llm.configuration import Step1Config
    from stepaudio.llm.model import Step1ForCausalLM

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_attention_groups",
    "max_seq_len",
)


def load_step1(folder: Path, device: torch.device, dtype: torch.dtype) -> Step1ForCausalLM:
    """Return the model of ``folder`` on ``device`` in ``dtype``, ready for inference.

    Reads config.json and the shards that model.safetensors.index.json names (without it: every *.safetensors). The
    projections of a folder that holds them packed (see compressed.py) stay packed.
    Raises WeightsError, naming file and folder, for anything missing, damaged, superfluous or of another shape.
    """
    # Imported when needed: transformers takes seconds, and generating from a loaded model does not use it.
    from stepaudio.llm.model import Step1ForCausalLM

    config = read_config(folder)
    config.dtype = dtype
    with torch.device("meta"):
        model = Step1ForCausalLM(config)
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    scheme = scheme_of(_json(folder, CONFIG_FILE), folder)
    packed = _packed_weights(model) if scheme is not None else {}
    parts = {part for name in packed for part in unpacked_names(name, scheme)} if scheme is not None else set()
    expected = {name: shape for name, shape in expected.items() if name not in packed}
    state: dict[str, Tensor] = {}
    for shard, names in _shards(folder).items():
        for name, tensor in _tensors(folder, shard, names, device):
            if name in state:
                raise WeightsError(f"The tensor {name} of {shard} in {folder} stands in another file too.")
            if name in parts:
                state[name] = tensor.clone()
                continue
            if name not in expected:
                raise WeightsError(f"The file {shard} in {folder} holds the tensor {name}, which Step1 does not have.")
            if tensor.shape != expected[name] or not tensor.is_floating_point():
                raise WeightsError(
                    f"The tensor {name} of {shard} in {folder} is {tensor.dtype} {tuple(tensor.shape)}; "
                    f"config.json asks for floating-point numbers {tuple(expected[name])}."
                )
            state[name] = tensor.to(dtype, copy=True)  # a copy: the original may be a map of the file
    missing = [name for name in [*expected, *sorted(parts)] if name not in state]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise WeightsError(f"The model files in {folder} lack the tensor {missing[0]}{more}.")
    if scheme is not None:
        for name, shape in packed.items():
            owner, _, last = name.removesuffix(".weight").rpartition(".")
            weight = read_weight(state, name, shape, scheme, dtype, folder)
            setattr(model.get_submodule(owner), last, QuantisedLinear(weight))
        state = {name: tensor for name, tensor in state.items() if name not in parts}
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False).eval()


def is_packed(folder: Path) -> bool:
    """Return whether config.json says that the weights are packed; raises WeightsError for a way that is unknown."""
    return scheme_of(_json(folder, CONFIG_FILE), folder) is not None


def _packed_weights(model: Step1ForCausalLM) -> dict[str, tuple[int, int]]:
    """Return the names and shapes of the weights that a packed folder has packed: all projections of all layers."""
    return {
        f"{name}.weight": (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not model.lm_head
    }


def read_config(folder: Path) -> Step1Config:
    """Return the configuration in ``folder``/config.json; raises WeightsError when it is missing or unfit."""
    from stepaudio.llm.configuration import MODEL_TYPE, Step1Config

    fields = _json(folder, CONFIG_FILE)
    if fields.get("model_type") != MODEL_TYPE:
        raise WeightsError(f"The file {CONFIG_FILE} in {folder} does not describe a {MODEL_TYPE} model.")
    for name in _SIZES:
        value = fields.get(name)
        if not isinstance(value, int) or value < 1:
            raise WeightsError(f"The value of {name} in {CONFIG_FILE} in {folder} is {value!r}, not a positive number.")
    size = Step1Config(**fields)
    heads, groups = size.num_attention_heads, size.num_attention_groups
    if size.hidden_size % heads or heads % groups:
        raise WeightsError(
            f"The file {CONFIG_FILE} in {folder} does not fit together: {size.hidden_size} hidden units, "
            f"{heads} heads and {groups} groups do not divide evenly."
        )
    return size


def _shards(folder: Path) -> dict[str, set[str]]:
    """Return the weight files with the tensors that the index expects in each (none, if there is no index)."""
    if not (folder / INDEX_FILE).exists():
        names = sorted(path.name for path in folder.glob("*.safetensors"))
        if not names:
            raise WeightsError(f"There is no *.safetensors file in {folder}.")
        return {name: set() for name in names}
    places = _json(folder, INDEX_FILE).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"The file {INDEX_FILE} in {folder} is damaged: it has no weight_map.")
    shards: dict[str, set[str]] = {}
    for tensor, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise WeightsError(f"The file {INDEX_FILE} in {folder} is damaged: {shard!r} is not a file name.")
        shards.setdefault(shard, set()).add(tensor)
    return shards


def _tensors(folder: Path, shard: str, names: set[str], device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of one file; raises WeightsError when it is damaged or is not what the index says."""
    path = folder / shard
    if not path.is_file():
        raise WeightsError(f"The file {shard} is missing in {folder}.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as tensors:
            found = set(tensors.keys())
            for name in sorted(names - found):
                raise WeightsError(f"The file {shard} in {folder} lacks the tensor {name}, which the index expects.")
            for name in sorted(found):
                yield name, tensors.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"The file {shard} in {folder} is damaged: {error}.") from error


def _json(folder: Path, name: str) -> Mapping[str, Any]:
    try:
        value = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"The file {name} in {folder} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise WeightsError(f"The file {name} in {folder} is damaged: it holds no table of values.")
    return value
