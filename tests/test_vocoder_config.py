from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from stepaudio.errors import WeightsError
from stepaudio.tiny.vocoder import TINY_YAML
from stepaudio.vocoder.config import DitConfig, EncoderConfig, FlowConfig, read_config
from tests.vocoder_recordings import REAL_HIFT


def written(folder: Path, text: str) -> Path:
    (folder / "cosyvoice.yaml").write_text(text, encoding="utf-8")
    return folder


def test_the_recorded_yaml_is_read_number_for_number(conformance: Path) -> None:
    config = read_config(conformance / "vocoder" / "CosyVoice-300M-25Hz")
    assert config.mel == {
        "num_mels": 80,
        "n_fft": 1920,
        "hop_size": 480,
        "win_size": 1920,
        "sampling_rate": 24000,
        "fmin": 0,
        "fmax": 8000,
    }
    assert config.flow == FlowConfig(
        input_size=32,
        mel_channels=80,
        speaker_size=192,
        vocabulary=5121,
        guidance=0.7,
        encoder=EncoderConfig(
            input_size=32,
            output_size=32,
            lookahead=3,
            blocks=2,
            up_blocks=1,
            up_stride=2,
            up_factor=2,
            heads=4,
            linear_units=64,
        ),
        dit=DitConfig(in_channels=320, out_channels=80, mlp_ratio=4.0, depth=2, heads=2, head_dim=16, hidden=32),
    )
    assert config.hift == dataclasses.replace(REAL_HIFT, base_channels=32, f0_channels=32)
    assert config.hift.frame_samples == 480


def test_configs_cannot_be_changed(tmp_path: Path) -> None:
    config = read_config(written(tmp_path, TINY_YAML))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.flow.guidance = 1.0


@pytest.mark.parametrize("key", ["inference_cfg_rate", "upsample_rates", "hop_len", "num_up_blocks", "fmax"])
def test_a_missing_key_is_named_with_file_and_folder(tmp_path: Path, key: str) -> None:
    text = "\n".join(line for line in TINY_YAML.splitlines() if f"{key}:" not in line)
    with pytest.raises(WeightsError, match=rf"cosyvoice\.yaml in .*{tmp_path.name}.*{key}' is missing\.$"):
        read_config(written(tmp_path, text))


@pytest.mark.parametrize("section", ["mel_conf:", "estimator: !new:", "istft_params:", "f0_predictor: !new:"])
def test_an_unknown_key_within_a_network_is_told_and_ignored(tmp_path: Path, section: str, caplog) -> None:
    """The real yaml was never seen whole: a key that changes no network must not keep real weights from running."""
    lines = TINY_YAML.splitlines()
    at = next(i for i, line in enumerate(lines) if section in line) + 1
    indent = " " * (len(lines[at]) - len(lines[at].lstrip()))
    lines.insert(at, f"{indent}surprise: 1")
    plain = read_config(written(tmp_path, TINY_YAML))
    assert read_config(written(tmp_path, "\n".join(lines))) == plain
    assert "surprise' is not known and is ignored" in caplog.text


def test_entries_of_other_programs_beside_the_three_sections_do_not_matter(tmp_path: Path) -> None:
    plain = read_config(written(tmp_path, TINY_YAML))
    assert read_config(written(tmp_path, TINY_YAML + "\nsample_rate: 24000\n")) == plain


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("depth: 2", "depth: two", "depth' must be a whole number of at least 1, not 'two'"),
        ("depth: 2", "depth: 0", "depth' must be a whole number of at least 1, not 0"),
        ("depth: 2", "depth: true", "depth' must be a whole number of at least 1, not True"),
        ("nsf_alpha: 0.1", "nsf_alpha: .nan", "nsf_alpha' must be a number, not nan"),
        ("[8, 5, 3]", "[8, 5, -3]", "upsample_rates' must be a list of positive whole numbers"),
        ("[8, 5, 3]", "[8, 5]", "a mel frame is 480 samples in mel_conf, but 160 in hift|differ in length"),
        ("[16, 11, 7]", "[16, 11]", "the lists of 'hift' differ in length"),
        ("hop_size: 480", "hop_size: 240", "a mel frame is 240 samples in mel_conf, but 480 in hift"),
        ("num_mels: 80", "num_mels: 40", "name 40, 80 and 80 mel channels"),
        ("key_bias: true", "key_bias: false", "key_bias' is False, but only True is supported"),
        ("in_channels: 320", "in_channels: 300", "four times in and once out"),
        ("hift: !new:stepvocoder.cosyvoice2.hifigan.generator.HiFTGenerator", "hift:", "under a !new: tag"),
        ("flow.flow.CausalMaskedDiffWithXvec", "flow.flow.Other", "names Other, but only CausalMaskedDiffWithXvec"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in TINY_YAML
    with pytest.raises(WeightsError, match=sentence) as caught:
        read_config(written(tmp_path, TINY_YAML.replace(old, new)))
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_a_sound_generator_of_neither_kind_is_refused_by_name(tmp_path: Path) -> None:
    text = TINY_YAML.replace("hifigan.generator.HiFTGenerator", "vocos.Vocos")
    with pytest.raises(WeightsError, match="'hift' names Vocos, but only HiFTGenerator and BigVGAN are supported"):
        read_config(written(tmp_path, text))


@pytest.mark.parametrize(
    "hostile",
    [
        "mel_conf: !!python/object/apply:os.mkdir ['{made}']",
        "mel_conf: !new:os.mkdir\n    path: '{made}'\n",
        "mel_conf: !apply:os.mkdir ['{made}']",
    ],
)
def test_nothing_that_a_yaml_names_is_ever_run(tmp_path: Path, hostile: str) -> None:
    made = tmp_path / "made"
    with pytest.raises(WeightsError):
        read_config(written(tmp_path, hostile.format(made=made)))
    assert not made.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=rf"^cosyvoice\.yaml is missing in .*{tmp_path.name}\.$"):
        read_config(tmp_path)


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00rubbish", b"a: [1, 2", b"- a\n- b\n", b"", b"x: !new:a.B 5"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "cosyvoice.yaml").write_bytes(damage)
    with pytest.raises(WeightsError, match=r"^cosyvoice\.yaml in .* can(not)? be .*\.$"):
        read_config(tmp_path)
