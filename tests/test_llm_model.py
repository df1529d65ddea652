"""llm/model.py and configuration.py: the transformers side of Step1."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.llm.configuration import Step1Config
from stepaudio.llm.model import Step1ForCausalLM, register

from transformers import AutoConfig, AutoModelForCausalLM  # isort: skip - torchaudio is prepared above


def real_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released 3B checkpoint."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (74752, 3072),
        "lm_head.weight": (74752, 3072),
        "model.norm.weight": (3072,),
    }
    for number in range(32):
        layer = f"model.layers.{number}"
        for name in ("q_proj", "o_proj"):
            shapes[f"{layer}.self_attn.{name}.weight"] = (3072, 3072)
        for name in ("k_proj", "v_proj"):
            shapes[f"{layer}.self_attn.{name}.weight"] = (256, 3072)
        for name in ("gate_proj", "up_proj"):
            shapes[f"{layer}.mlp.{name}.weight"] = (8192, 3072)
        shapes[f"{layer}.mlp.down_proj.weight"] = (3072, 8192)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{layer}.{name}.weight"] = (3072,)
    return shapes


def test_the_real_config_gives_the_real_tensors(small_files: Path) -> None:
    config = Step1Config(**json.loads((small_files / "config.json").read_text("utf-8")))
    with torch.device("meta"):
        model = Step1ForCausalLM(config)
    state = model.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == real_shapes()
    assert len(state) == 291
    assert sum(tensor.numel() for tensor in state.values()) == 3_529_706_496
    assert list(model.buffers()) == []
    assert model.model.size.max_length == 32768


@pytest.mark.parametrize("wish", [{}, {"tie_word_embeddings": True}, {"tie_word_embeddings": False}])
def test_embeddings_are_untied_whatever_the_config_says(wish: dict) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_attention_groups": 1}
    config = Step1Config(**sizes, num_hidden_layers=1, vocab_size=20, **wish)
    model = Step1ForCausalLM(config)
    model.tie_weights()
    assert config.tie_word_embeddings is False
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_auto_classes_load_a_recorded_model_after_register(conformance: Path, name: str) -> None:
    register()
    register()
    folder = conformance / "step1_lm" / name
    assert isinstance(AutoConfig.from_pretrained(folder), Step1Config)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert isinstance(model, Step1ForCausalLM)
    vectors = np.load(folder / "vectors.npz")
    with torch.inference_mode():
        logits = model(torch.from_numpy(vectors["input_ids"])).logits
    np.testing.assert_allclose(logits.numpy(), vectors["logits"], atol=2e-4, rtol=0)


def test_a_folder_that_names_remote_code_is_loaded_by_our_class(conformance: Path, tmp_path: Path) -> None:
    register()
    for path in (conformance / "step1_lm" / "c").iterdir():
        shutil.copyfile(path, tmp_path / path.name)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["auto_map"] = {
        "AutoConfig": "configuration_step1.Step1Config",
        "AutoModelForCausalLM": "modeling_step1.Step1ForCausalLM",
    }
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=False)
    assert type(model) is Step1ForCausalLM


def test_a_saved_model_is_loaded_back_the_same(tmp_path: Path) -> None:
    config = Step1Config(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_attention_groups=1, num_hidden_layers=1
    )
    config.vocab_size = 20
    model = Step1ForCausalLM(config)
    model.save_pretrained(tmp_path)
    again = Step1ForCausalLM.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_generating_needs_no_transformers_and_importing_registers_nothing() -> None:
    code = (
        "import sys\n"
        "import stepaudio.llm.generate, stepaudio.llm.loading\n"
        "assert 'transformers' not in sys.modules\n"
        "import stepaudio.llm.model\n"
        "from transformers import AutoConfig\n"
        "try:\n    AutoConfig.for_model('step1')\n"
        "except ValueError:\n    print('unknown until register()')\n"
    )
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == "unknown until register()", result.stderr
