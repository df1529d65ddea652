"""An exported encoder gives torch's frames and codes, and one that does not belong to the weights is refused."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from stepaudio.encoder.engines import TORCH, LinguisticChoice, load_chosen
from stepaudio.encoder.export import export_encoder
from stepaudio.encoder.exported import FLOAT, INT8, check_export, description_of
from stepaudio.encoder.funasr_folder import load_funasr
from stepaudio.encoder.graph import INPUT, build_graph
from stepaudio.encoder.onnx_session import CPU as CPU_PROVIDER
from stepaudio.encoder.paraformer import LinguisticEncoder, load_linguistic, window_encoder
from stepaudio.errors import StepAudioError, WeightsError
from stepaudio.tiny.encoder import FUNASR_FOLDER, synthetic_sound
from stepaudio.types import FloatArray

CPU = torch.device("cpu")
LENGTHS = [0, 879, 880, 1360, 3839, 3840, 3841, 4720, 7679, 15360, 19200, 20000, 40000, 100000]


def load(choice: LinguisticChoice, folder: Path, centroids: Path) -> LinguisticEncoder:
    return load_chosen(choice, folder, centroids, device=CPU, threads=1)


@pytest.fixture(scope="module")
def vectors(conformance: Path) -> Path:
    return conformance / "paraformer"


@pytest.fixture(scope="module")
def exported(vectors: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded weights, exported in float32."""
    target = tmp_path_factory.mktemp("exported")
    assert export_encoder(vectors / "model", target, int8=False) == [target / FLOAT]
    return target


@pytest.fixture(scope="module")
def onnx_encoder(vectors: Path, exported: Path) -> LinguisticEncoder:
    return load(LinguisticChoice("onnx", exported), vectors / "model", vectors / "centroids.npy")


@pytest.fixture(scope="module")
def tiny(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A copy of tiny's FunASR folder with both exports in it, and tiny's centroids."""
    tokenizer = tiny_weights / "Step-Audio-Tokenizer"
    folder = shutil.copytree(tokenizer / FUNASR_FOLDER, tmp_path_factory.mktemp("tiny") / "funasr")
    assert export_encoder(folder, folder, int8=True) == [folder / FLOAT, folder / INT8]
    return folder, tokenizer / "linguistic_tokenizer.npy"


def sound(seconds: float = 8.0, seed: int = 7) -> FloatArray:
    return synthetic_sound(seconds, seed).astype(np.float32)


def test_the_exported_encoder_gives_the_recorded_frames_and_codes(
    vectors: Path, onnx_encoder: LinguisticEncoder
) -> None:
    described = json.loads((vectors / "cases.json").read_text())
    with np.load(vectors / "waves.npz") as waves, np.load(vectors / "expected.npz") as expected:
        assert len(described["cases"]) == 30
        for case in described["cases"]:
            pcm = waves[f"{case['wave']}_pcm16"][case["offset"] : case["offset"] + case["length"]]
            samples = pcm.astype(np.float32) / 32768 * np.float32(described["gain"])
            frames, name = onnx_encoder.frames(samples), case["name"]
            np.testing.assert_allclose(frames, expected[f"{name}.enc"], atol=1e-4, rtol=0, err_msg=name)
            np.testing.assert_array_equal(onnx_encoder.encode(samples), expected[f"{name}.vq02"], err_msg=name)
            np.testing.assert_allclose(
                onnx_encoder.margins(expected[f"{name}.enc"]), expected[f"{name}.margin"], atol=1e-4
            )


def test_the_exported_encoder_equals_torch_at_every_length(vectors: Path, onnx_encoder: LinguisticEncoder) -> None:
    torch_encoder = load_linguistic(vectors / "model", vectors / "centroids.npy", device=CPU)
    for length in LENGTHS:
        ours, theirs = onnx_encoder.frames(sound()[:length]), torch_encoder.frames(sound()[:length])
        assert ours.shape == theirs.shape, length
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0, err_msg=str(length))
        assert onnx_encoder.encode(sound()[:length]).tolist() == torch_encoder.encode(sound()[:length]).tolist()


def test_on_tiny_every_code_of_the_float_export_is_torchs(tiny: tuple[Path, Path]) -> None:
    a, b = (load(choice, *tiny) for choice in (TORCH, LinguisticChoice("onnx")))
    frames = a.frames(sound())
    np.testing.assert_allclose(b.frames(sound()), frames, atol=1e-4, rtol=0)
    assert len(frames) == 133
    np.testing.assert_array_equal(a.encode(sound()), b.encode(sound()))


@pytest.mark.parametrize(("engine", "least"), [("onnx-int8", 0.9), ("torch-bf16", 0.95)])
def test_a_rounded_engine_keeps_most_codes_of_tiny_but_computes_something_else(
    engine: str, least: float, tiny: tuple[Path, Path]
) -> None:
    exact, rounded = load(TORCH, *tiny), load(LinguisticChoice(engine), *tiny)
    difference = np.abs(exact.frames(sound()) - rounded.frames(sound()))
    assert 0 < difference.max() < 1
    equal = (exact.encode(sound()) == rounded.encode(sound())).mean()
    assert least <= equal <= 1, f"{engine}: {equal:.1%} of the codes are equal"
    np.testing.assert_array_equal(rounded.frames(sound()), rounded.frames(sound()))


def test_only_the_products_of_the_linear_layers_are_quantised(tiny: tuple[Path, Path]) -> None:
    kinds = [node.op_type for node in onnx.load(str(tiny[0] / INT8)).graph.node]
    plain = [node.op_type for node in onnx.load(str(tiny[0] / FLOAT)).graph.node]
    layers = 4
    assert kinds.count("MatMulInteger") == 4 * layers
    assert kinds.count("MatMul") == 2 * layers  # scores, and the mean of the values
    assert plain.count("MatMul") == 6 * layers
    assert kinds.count("Conv") == plain.count("Conv") == layers
    assert (tiny[0] / INT8).stat().st_size < 0.6 * (tiny[0] / FLOAT).stat().st_size


def test_quantising_leaves_the_root_logger_alone(vectors: Path, tmp_path: Path) -> None:
    root = logging.getLogger()
    before = list(root.handlers)
    export_encoder(vectors / "model", tmp_path, int8=True)
    assert root.handlers == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [FLOAT, INT8, "encoder.json", "encoder.int8.json"]
    )


def test_weights_of_the_graph_bear_the_names_of_the_checkpoint(vectors: Path) -> None:
    encoder = load_funasr(vectors / "model", CPU).model.encoder
    model = build_graph(window_encoder(encoder, vectors))
    assert set(encoder.state_dict()) <= {weight.name for weight in model.graph.initializer}
    assert [port.name for port in model.graph.input] == [INPUT]


def test_the_engine_says_what_runs_and_holds_no_second_network(onnx_encoder: LinguisticEncoder) -> None:
    assert onnx_encoder.provider == CPU_PROVIDER
    assert onnx_encoder.funasr is None


def test_an_export_of_other_weights_is_refused_in_one_sentence(tiny: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny[0], tmp_path / "funasr")
    state = torch.load(folder / "model.pt", weights_only=True)
    state["encoder.after_norm.bias"] += 0.01
    torch.save(state, folder / "model.pt")
    with pytest.raises(
        WeightsError, match=r"encoder\.onnx in .* was made of another model\.pt than the one in"
    ) as told:
        load(LinguisticChoice("onnx"), folder, tiny[1])
    assert str(told.value).endswith("'python -m stepaudio export-encoder' writes it anew.")
    with pytest.raises(WeightsError, match=r"encoder\.int8\.onnx .*another model\.pt .*export-encoder --int8' writes"):
        load(LinguisticChoice("onnx-int8"), folder, tiny[1])
    export_encoder(folder, folder, int8=False)
    assert len(load(LinguisticChoice("onnx"), folder, tiny[1]).encode(sound())) == 133


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda f: (f / FLOAT).unlink(), r"The exported encoder encoder\.onnx is missing in .*; 'python -m"),
        (lambda f: description_of(f / FLOAT).unlink(), r"encoder\.json in .* cannot be read; 'python -m"),
        (lambda f: description_of(f / FLOAT).write_text("{}"), r"encoder\.json in .* cannot be read"),
        (lambda f: description_of(f / FLOAT).write_text("[1]"), r"encoder\.json in .* cannot be read"),
        (lambda f: shutil.copy(f / INT8, f / FLOAT), r"encoder\.onnx in .* is not the one that its encoder\.json"),
        (
            lambda f: description_of(f / FLOAT).write_text(
                description_of(f / FLOAT).read_text().replace('"revision": 1', '"revision": 0')
            ),
            r"encoder\.onnx in .* was exported by another version of stepaudio",
        ),
    ],
)
def test_a_faulty_export_is_refused_in_one_sentence(change, sentence, tiny: tuple[Path, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny[0], tmp_path / "funasr")
    assert check_export(folder / FLOAT, folder).size == 64
    change(folder)
    with pytest.raises(WeightsError, match=sentence):
        check_export(folder / FLOAT, folder)


def test_a_folder_that_cannot_be_written_is_named(vectors: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StepAudioError, match=rf"cannot be written to {tmp_path}/file"):
        export_encoder(vectors / "model", tmp_path / "file", int8=False)
