"""Random weights of chosen sizes: they have the sizes that they say, and the product runs on them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from stepaudio.bench.folders import MINI, SEED, TINY, real_size, vocoder_yaml, write_folder
from stepaudio.bench.stand_ins import S3Size, write_s3_of
from stepaudio.encoder.s3 import SemanticEncoder
from stepaudio.tiny.encoder import paraformer_config
from stepaudio.tiny.llm import TINY_SIZES
from stepaudio.tiny.vocoder import TINY_YAML
from stepaudio.vocoder.config import read_config
from stepaudio.vocoder.flow import Flow
from stepaudio.vocoder.vocoder import sound_generator
from tests.conftest import ROOT, voice

MINI_FOLDER = ROOT / "models" / "mini"


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_language_model_of_real_size_has_the_real_number_of_parameters():
    from stepaudio.llm.configuration import Step1Config
    from stepaudio.llm.model import Step1ForCausalLM

    with torch.device("meta"):
        model = Step1ForCausalLM(Step1Config(model_type="step1", rms_norm_eps=1e-5, **real_size().llm))
    assert parameters(model) == 3_529_706_496


def test_the_vocoder_of_real_size_has_the_real_number_of_parameters(tmp_path):
    (tmp_path / "cosyvoice.yaml").write_text(vocoder_yaml(real_size().vocoder), encoding="utf-8")
    config = read_config(tmp_path)
    with torch.device("meta"):
        assert parameters(Flow(config.flow)) == 153_754_096
        hift = sound_generator(config.hift)
    # Folded weight norm: 20,821,295 parameters less one length for each normalised row.
    assert 20_700_000 < parameters(hift) < 20_821_295


def test_minis_sizes_are_those_of_the_folder(tmp_path):
    """The codebook is the one exception: mini has 2000 semantic codes, the tiny tokenizer names all 4096."""
    real = yaml.load((MINI_FOLDER / "Step-Audio-EditX/CosyVoice-300M-25Hz/cosyvoice.yaml").read_text(), Loader())
    ours = yaml.load(vocoder_yaml(MINI.vocoder), Loader())
    # The guidance is a number for the solver, no size.
    for flow in (real["flow"], ours["flow"]):
        flow["decoder"].pop("inference_cfg_rate")
    for found in (real["flow"], real["flow"]["input_embedding"], ours["flow"], ours["flow"]["input_embedding"]):
        found.pop("vocab_size")
    assert ours == real
    (config,) = (MINI_FOLDER / "Step-Audio-Tokenizer").glob("**/config.yaml")
    encoder = yaml.safe_load(config.read_text())["encoder_conf"]
    assert paraformer_config(**MINI.paraformer)["encoder_conf"] == encoder
    language = json.loads((MINI_FOLDER / "Step-Audio-EditX" / "config.json").read_text(encoding="utf-8"))
    assert {name: language[name] for name in MINI.llm} == MINI.llm


def Loader():
    class Tolerant(yaml.SafeLoader):
        pass

    Tolerant.add_multi_constructor("!new:", lambda loader, tag, node: loader.construct_mapping(node, deep=True))
    return Tolerant


def test_a_section_that_the_vocoder_does_not_have_is_refused():
    assert vocoder_yaml({}) == TINY_YAML
    with pytest.raises(KeyError, match="depht"):
        vocoder_yaml({"estimator": {"depht": "3"}})


SCALED_DOWN = replace(
    real_size(layers=1, dtype=torch.bfloat16),
    llm={**TINY_SIZES, "num_hidden_layers": 1, "vocab_size": 12_000, "max_seq_len": 4096},
    paraformer={"size": 32, "heads": 2, "linear_units": 64, "blocks": 3},
    vocoder={},
    s3=S3Size(width=32, heads=2, layers=1),
)
"""The way in which the real size is written, with small networks."""


@pytest.mark.parametrize("size", [TINY, SCALED_DOWN], ids=["tiny", "as the real size"])
def test_a_folder_is_whole_and_the_product_runs_on_it(tmp_path, size):
    from stepaudio import device
    from stepaudio.loading import load_engine
    from stepaudio.settings import Settings
    from stepaudio.types import Reference, SamplingParams
    from stepaudio.weights import choose_weights

    folder = write_folder(tmp_path / "weights", size)
    assert json.loads((folder / "card.json").read_text())["title"] == f"random weights of size {size.name}"
    settings = Settings(weights=str(folder), cache_dir=tmp_path / "cache")
    engine = load_engine(choose_weights(settings), settings, device.choose("cpu"))
    made = engine.pipeline.clone(Reference(voice(1.0), "words"), "more words", SamplingParams(seed=1), max_seconds=0.6)
    engine.close()
    assert made.stopped == "length"
    assert made.waveform.seconds == pytest.approx(0.6)


def test_the_stand_in_of_the_semantic_tokenizer_is_taken_for_one(tmp_path):
    path = tmp_path / "s3.onnx"
    write_s3_of(path, S3Size(width=32, heads=2, layers=1), SEED)
    encoder = SemanticEncoder(path, device=torch.device("cpu"), threads=1)
    codes = encoder.encode(voice(2.0, 16000).samples)
    assert len(codes) == 50
    assert len(set(codes.tolist())) > 1
    other = encoder.encode(voice(2.0, 16000, pitch=200.0).samples)
    assert not np.array_equal(codes, other)


def test_the_stand_in_has_the_real_ones_number_of_weights():
    """At width 1280 with 6 layers: 522,625,011 bytes is what the real file has."""
    width, layers = 1280, 6
    convolutions = 3 * 128 * width + 3 * width * width
    layer = 4 * (width * width + width) + 2 * 4 * width * width + 5 * width + 4 * width
    assert 4 * (convolutions + layers * layer + width * 4096) == pytest.approx(522_625_011, rel=0.02)


def test_the_stand_in_holds_what_its_size_says(tmp_path):
    import onnx

    path = tmp_path / "s3.onnx"
    write_s3_of(path, S3Size(width=64, heads=4, layers=2), SEED)
    counted = sum(int(np.prod(weight.dims)) for weight in onnx.load(str(path)).graph.initializer)
    convolutions = 3 * 128 * 64 + 3 * 64 * 64
    layer = 4 * (64 * 64 + 64) + 2 * 4 * 64 * 64 + 5 * 64 + 4 * 64
    assert counted == pytest.approx(convolutions + 2 * layer + 64 * 4096, rel=0.01)
    assert onnxruntime.InferenceSession(str(path)).get_inputs()[0].shape == [1, 128, "T"]
