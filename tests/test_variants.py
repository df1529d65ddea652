"""The variants of the language model: each runs on tiny weights, close to the plain one, and is named."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from annotated_types import Le
from safetensors.torch import load_file, save_file

from stepaudio.device import Runtime
from stepaudio.errors import WeightsError
from stepaudio.llm.bnb import PACKERS
from stepaudio.llm.compressed import read_weight, scheme_of
from stepaudio.llm.loading import load_step1
from stepaudio.llm.quantised import Int4Groups, Packed
from stepaudio.loading import choose, part_loaders, precision, steps
from stepaudio.service import Service
from stepaudio.settings import Settings
from stepaudio.tiny.awq import GROUP, write_awq
from stepaudio.types import Reference, SamplingParams
from stepaudio.variants import VARIANTS, variants
from stepaudio.web.tables import parts_table, variants_table
from stepaudio.weights import EDITX, EDITX_AWQ, choose_weights
from tests.conftest import voice
from tests.test_vocoder_bigvgan import write_bigvgan

CPU = torch.device("cpu")
WORDS = {
    "base": "language model in float32",
    "awq": "language model in 4 bits (AWQ), multiplied in bfloat16, prompts in float32",
    "bnb-int8": "language model in 8 bits (bitsandbytes int8), multiplied in bfloat16, prompts in float32",
    "bnb-nf4": "language model in 4 bits (bitsandbytes NF4), unpacked to float32",
}
QUANTISED = [name for name in VARIANTS if name != "base"]


@pytest.fixture(scope="module")
def folder(tiny_weights: Path, tmp_path_factory) -> Path:
    """Tiny weights that have the AWQ folder too, with a BigVGAN, as the official one."""
    copy = shutil.copytree(tiny_weights, tmp_path_factory.mktemp("variants") / "weights")
    packed = write_awq(copy / EDITX, copy / EDITX_AWQ)
    write_bigvgan(packed / "CosyVoice-300M-25Hz")
    return copy


@pytest.fixture
def make(make_engine, folder):
    return lambda name, **settings: make_engine(weights=str(folder), variant=name, **settings)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_clones_and_says_what_runs(make, name):
    engine = make(name)
    made = engine.pipeline.clone(
        Reference(voice(1.0), "words"), "Hello.", SamplingParams(seed=1), max_seconds=0.6, flow_steps=1
    )
    assert made.tokens.groups == 5
    assert np.isfinite(made.waveform.samples).all()
    assert np.abs(made.waveform.samples).max() > 1e-4
    assert engine.summary.startswith(WORDS[name])
    assert [v.name for v in variants(engine.weights) if v.running] == [name]


@pytest.mark.parametrize("name", QUANTISED)
def test_a_packed_model_computes_nearly_what_the_plain_one_does_in_less_memory(make, name):
    plain, packed = make("base").pipeline._lm, make(name).pipeline._lm
    ids = torch.arange(300, 340)[None]
    with torch.inference_mode():
        expected, got = plain._decoder(ids), packed._decoder(ids)
    error = float((got - expected).norm() / expected.norm())
    limit = {"awq": 0.25, "bnb-int8": 0.03, "bnb-nf4": 0.25}[name]
    assert 1e-4 < error < limit  # it is packed, and no more than that
    weights = packed._weights.layers[0].joint
    assert weights.nbytes < weights.dense().nbytes / (3 if name == "bnb-int8" else 4)


@pytest.mark.parametrize("name", QUANTISED)
def test_the_step_and_the_network_of_a_packed_model_agree(make, name):
    """Greedy ids of the decode loop are those of reading the whole anew for each id."""
    lm = make(name).pipeline._lm
    prompt = list(range(300, 330))
    made = lm.generate(prompt, SamplingParams(temperature=0, repetition_rule=False), seed=0, max_tokens=20)
    ids = [*prompt, *lm._vocabulary.ids(made.tokens.numbers).tolist()]
    with torch.inference_mode():
        hidden = lm._decoder(torch.tensor([ids]))[0]
    for place in range(20):
        choice = lm._head.choices[lm._head.choice(place)]
        scores = hidden[len(prompt) + place - 1] @ choice.weight
        assert int(choice.ids[scores.argmax()]) == ids[len(prompt) + place]


def int4(out: int, columns: int, group: int) -> Int4Groups:
    codes = torch.randint(0, 256, (out, columns // 2), dtype=torch.uint8)
    scale, zero = 0.1 * torch.rand(out, columns // group), torch.randint(0, 16, (out, columns // group)).float()
    return Int4Groups(codes, scale, zero)


def int8(out: int, columns: int) -> Packed:
    return PACKERS["int8"](torch.randn(out, columns) * torch.rand(out, 1))


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("make", [lambda: int8(96, 64), lambda: int4(96, 64, 32), lambda: int4(96, 256, 128)])
def test_a_cpu_multiplies_by_the_packed_numbers_themselves(make, rows, monkeypatch):
    torch.manual_seed(0)
    packed = make().rows(32, 96)  # as the parts of a joint weight are
    x = torch.randn(rows, packed.shape[1])
    expected = x @ packed.dense().t()
    with monkeypatch.context() as patch:
        patch.setattr(type(packed), "dense", lambda _: pytest.fail("It was unpacked."))
        got = packed.product(x)
    assert got.dtype == x.dtype
    assert float((got - expected).norm() / expected.norm()) < 0.006  # bfloat16 has three digits


@pytest.mark.parametrize("make", [lambda: int8(96, 64), lambda: int4(96, 256, 128)])
def test_a_row_has_the_same_product_beside_as_many_as_a_step_may_have_as_alone(make):
    torch.manual_seed(0)
    packed = make()
    (most,) = (limit.le for limit in Settings.model_fields["decode_rows"].metadata if isinstance(limit, Le))
    x = torch.randn(most, packed.shape[1])
    alone = torch.cat([packed.product(row[None]) for row in x])
    difference = float((packed.product(x) - alone).norm() / alone.norm())
    assert difference < 3e-4  # from float32 to bfloat16 it is ten times as much


@pytest.mark.parametrize(
    "make", [lambda: int8(32, 24), lambda: int4(24, 64, 32), lambda: int4(32, 64, 16)], ids=["int8", "out", "group"]
)
def test_what_a_kernel_is_not_for_is_unpacked(make):
    torch.manual_seed(0)
    packed = make()
    x = torch.randn(1, packed.shape[1])
    torch.testing.assert_close(packed.product(x), x @ packed.dense().t(), rtol=0, atol=0)


def test_what_we_unpack_is_what_the_library_of_the_format_unpacks(folder, tiny_weights):
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    (shard,) = (folder / EDITX_AWQ).glob("*.safetensors")
    tensors = load_file(shard)
    stem = "model.layers.1.mlp.down_proj."
    shape = (64, 128)
    config = json.loads((folder / EDITX_AWQ / "config.json").read_text())
    ours = read_weight(tensors, stem + "weight", shape, scheme_of(config, folder), torch.float32, folder).dense()
    codes = unpack_from_int32(tensors[stem + "weight_packed"], 4, torch.Size(shape))
    zeros = unpack_from_int32(tensors[stem + "weight_zero_point"], 4, torch.Size((64, 128 // GROUP)), packed_dim=0)
    scale = tensors[stem + "weight_scale"].repeat_interleave(GROUP, 1)
    theirs = (codes.float() - zeros.float().repeat_interleave(GROUP, 1)) * scale
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    plain = load_file(next((tiny_weights / EDITX).glob("*.safetensors")))[stem + "weight"]
    assert float((ours - plain).abs().max()) <= float(scale.max()) * 0.51


def test_symmetric_weights_are_read_too(tiny_weights, tmp_path):
    packed = write_awq(tiny_weights / EDITX, tmp_path / "symmetric", symmetric=True)
    plain = load_step1(tiny_weights / EDITX, CPU, torch.float32)
    model = load_step1(packed, CPU, torch.float32)
    expected = plain.model.layers[0].mlp.up_proj.weight
    got = model.model.layers[0].mlp.up_proj.packed.dense()
    assert 0 < float((got - expected).norm() / expected.norm()) < 0.2


def change_config(folder: Path, **fields) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= fields
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"quant_method": "gptq"}, "only compressed-tensors"),
        ({"format": "marlin-24"}, "only compressed-tensors"),
        ({"config_groups": {}}, "exactly one group"),
        ({"config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, "only integers of 4 bits"),
    ],
)
def test_another_way_of_packing_is_refused_in_one_sentence(tiny_weights, tmp_path, fields, expected):
    packed = write_awq(tiny_weights / EDITX, tmp_path / "packed")
    change_config(packed, **fields)
    with pytest.raises(WeightsError, match=expected):
        load_step1(packed, CPU, torch.float32)


@pytest.mark.parametrize("part", ["weight_packed", "weight_scale", "weight_zero_point", "weight_shape"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_part_of_a_packed_weight_that_does_not_fit_is_named(tiny_weights, tmp_path, part, damage):
    packed = write_awq(tiny_weights / EDITX, tmp_path / "packed")
    (packed / "model.safetensors.index.json").unlink()
    (shard,) = packed.glob("*.safetensors")
    tensors = load_file(shard)
    name = f"model.layers.0.self_attn.q_proj.{part}"
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name][:1].clone()
    save_file(tensors, shard)
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load_step1(packed, CPU, torch.float32)


def test_the_only_variant_that_is_there_is_taken_and_others_say_why_not(folder, tmp_path, monkeypatch):
    alone = shutil.copytree(folder, tmp_path / "alone", ignore=lambda path, names: [EDITX] if EDITX in names else [])
    chosen = choose_weights(Settings(weights=str(alone)))
    assert (chosen.variant, chosen.editx.name) == ("awq", EDITX_AWQ)
    found = {v.name: v for v in variants(chosen)}
    assert not found["base"].available
    assert EDITX in found["base"].reason["en"]
    with pytest.raises(WeightsError, match=r"variant base needs the folder .*Step-Audio-EditX, which"):
        choose_weights(Settings(weights=str(alone), variant="base"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    both = choose_weights(Settings(weights=str(folder)))
    found = {v.name: v for v in variants(both)}
    assert both.variant == "base"
    assert found["awq"].available
    assert not found["awq"].running
    assert "STEPAUDIO_VARIANT=awq" in found["awq"].reason["en"]
    assert not found["bnb-nf4"].available
    assert "bitsandbytes is not installed" in found["bnb-nf4"].reason["en"]
    assert all(v.reason["zh"] or v.running for v in found.values())


def test_doctor_and_log_name_the_variant(folder, tmp_path, caplog):
    settings = Settings(weights=str(folder), variant="bnb-nf4", cache_dir=tmp_path, device="cpu")
    with caplog.at_level(logging.INFO, "stepaudio"):
        weights, runtime = choose(settings)
    assert "variant bnb-nf4" in caplog.text
    assert "4 bits (bitsandbytes NF4)" in part_loaders(weights, settings, runtime)["Language model"]()


def test_a_library_that_is_missing_is_one_sentence(make, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(WeightsError, match="needs bitsandbytes, which cannot be used here"):
        make("bnb-int8")


@pytest.mark.parametrize(
    ("dtype", "tf32", "expected"),
    [
        (torch.float32, True, "float32 with TF32"),
        (torch.float32, False, "float32"),
        (torch.bfloat16, True, "bfloat16"),
    ],
)
def test_tf32_is_told_of_each_part_that_has_it(folder, dtype, tf32, expected):
    weights = choose_weights(Settings(weights=str(folder)))
    runtime = Runtime(CPU, dtype, tf32, 1, "a test")
    assert precision(weights, runtime) == expected
    loaders = part_loaders(weights, Settings(), runtime)
    assert loaders["Flow and HiFT"]().endswith("float32 with TF32" if tf32 else "float32")
    assert "TF32" not in loaders["FunASR encoder"]()


@pytest.mark.parametrize(
    ("device", "fused", "graphs", "expected"),
    [
        ("cuda", True, True, " (fused kernels, with CUDA graphs)"),
        ("cuda", False, False, " (plain layers, without CUDA graphs)"),
        ("cpu", True, False, " (compiled steps)"),
        ("cpu", False, False, " (plain layers)"),
    ],
)
def test_how_steps_are_computed_is_told(device, fused, graphs, expected):
    lm = SimpleNamespace(device=torch.device(device), fused=fused, graphs=graphs)
    assert steps(lm) == expected


@pytest.mark.parametrize("wanted", [True, False])
def test_a_cpu_has_no_graphs_and_compiles_its_steps_if_that_is_wanted(make, wanted):
    lm = make("base", fused_kernels=wanted, cuda_graphs=True).pipeline._lm
    assert (lm.fused, lm.graphs) == (wanted, False)


def test_the_page_lists_the_variants_with_their_reasons_in_both_languages(make, tmp_path):
    engine = make("awq")
    service = Service(Settings(cache_dir=tmp_path / "cache", data_dir=tmp_path / "data"), lambda: engine)
    service.start()
    assert service.wait_until_decided(120) == "ready"
    english, chinese = variants_table(service, "en"), variants_table(service, "zh")
    assert "awq: 4 bits, official folder" in english
    assert english.count("● running") == chinese.count("● 正在运行") == 1
    assert "STEPAUDIO_VARIANT=base" in english
    assert "STEPAUDIO_VARIANT=base" in chinese
    assert "4 bits (AWQ)" in parts_table(service, "en")
    service.close()
