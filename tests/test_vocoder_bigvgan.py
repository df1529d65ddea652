from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from stepaudio.errors import GenerationError, WeightsError
from stepaudio.tiny.vocoder import TINY_YAML, write_vocoder
from stepaudio.types import Waveform
from stepaudio.vocoder.bigvgan import FILTERS, Activation, BigVGAN, SnakeBeta, is_filter, lowpass, without_filters
from stepaudio.vocoder.config import BigvganConfig, read_config
from stepaudio.vocoder.vocoder import Vocoder, load_vocoder
from stepaudio.vocoder.weights import HIFT_NAME, fill, hift_names, weight_lengths
from stepaudio.vocoder.windows import bigvgan_sound
from tests.vocoder_recordings import SOUND, assert_close, speech, voice_of

CPU = torch.device("cpu")

# The entry with the published names of the hyper-parameters; 64 channels are the least that six stages halve.
YAML_64 = """\
hift: !new:stepvocoder.cosyvoice2.bigvgan.bigvgan.BigVGAN
    num_mels: 80
    upsample_rates: [5, 4, 3, 2, 2, 2]
    upsample_kernel_sizes: [11, 8, 7, 4, 4, 4]
    upsample_initial_channel: 64
    resblock: '1'
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    activation: 'snakebeta'
    snake_logscale: true
    use_bias_at_final: false
    use_tanh_at_final: false
"""
HEAD = TINY_YAML[: TINY_YAML.index("hift:")]


def sized(channels: int) -> BigvganConfig:
    return BigvganConfig(
        mel_channels=80,
        base_channels=channels,
        sample_rate=24000,
        upsample_rates=(5, 4, 3, 2, 2, 2),
        upsample_kernels=(11, 8, 7, 4, 4, 4),
        resblock_kernels=(3, 7, 11),
        resblock_dilations=((1, 3, 5),) * 3,
    )


def as_stored(network: BigVGAN) -> dict[str, Tensor]:
    """Return the weights as hift.pt holds them: normalised, with the filter beside every activation."""
    stored: dict[str, Tensor] = {}
    for key, value in network.state_dict().items():
        if key.endswith(".weight"):
            stored[f"{key}_g"], stored[f"{key}_v"] = weight_lengths(value), 3 * value
        else:
            stored[key] = value
    for key in [key.removesuffix(".act.alpha") for key in stored if key.endswith(".act.alpha")]:
        stored |= {key + suffix: lowpass(CPU)[None, None] for suffix in FILTERS}
    return stored


def network(channels: int) -> BigVGAN:
    with torch.device("meta"):
        return BigVGAN(sized(channels))


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


@pytest.fixture(scope="module")
def vectors(conformance: Path) -> dict[str, Tensor]:
    return load_file(conformance / "vocoder" / "bigvgan.safetensors")


@pytest.fixture(scope="module")
def recorded_state(vectors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("state."): value for key, value in vectors.items() if key.startswith("state.")}


@pytest.fixture(scope="module")
def recorded(recorded_state: dict[str, Tensor]) -> BigVGAN:
    bigvgan = network(64)
    fill(bigvgan, hift_names(without_filters(recorded_state, Path("hift.pt"))), Path("hift.pt"))
    return bigvgan


def write_bigvgan(folder: Path, entry: str = YAML_64) -> Path:
    """Write a vocoder whose flow is tiny and whose sound generator is a random BigVGAN of 64 channels."""
    write_vocoder(folder, seed=0)
    (folder / "cosyvoice.yaml").write_text(HEAD + entry, encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(as_stored(BigVGAN(sized(64))), folder / HIFT_NAME)
    return folder


def changed(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> Path:
    """Change what the folder's hift.pt holds."""
    state = torch.load(folder / HIFT_NAME, weights_only=True)
    change(state)
    torch.save(state, folder / HIFT_NAME)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bigvgan(tmp_path_factory.mktemp("bigvgan"))


@pytest.fixture(scope="module")
def vocoder(folder: Path) -> Vocoder:
    return load_vocoder(folder, CPU)


def spoken(vocoder: Vocoder, groups: int) -> Waveform:
    mel, speaker = voice_of()
    frames = vocoder.flow(speech(groups), speech(3, seed=1), mel, speaker, seed=7, steps=2)
    return vocoder.sound(frames, seed=7)


# The network


def test_the_sound_agrees_with_the_recording(recorded: BigVGAN, vectors: dict[str, Tensor]) -> None:
    expected = vectors["out.wav"].squeeze(1)
    assert (expected.abs() < 1).float().mean() > 0.7, "the limit must not hide what is compared"
    assert_close(recorded(vectors["in.mel"]), expected, SOUND)


@torch.inference_mode()
def test_far_from_a_cut_a_piece_sounds_as_it_does_within_the_whole(recorded: BigVGAN) -> None:
    """A piece brings three frames of context on either side; the residual blocks reach further, up to 25 frames."""
    mel = torch.randn(1, 80, 100, generator=torch.Generator().manual_seed(0)) - 4
    whole, piece = recorded(mel), recorded.samples(mel[:, :, 10 - 3 : 90 + 3])
    assert piece.shape == (1, 480 * 80)
    assert_close(piece[:, 480 * 25 : 480 * 55], whole[:, 480 * 35 : 480 * 65], 1e-5)


@pytest.mark.parametrize("frames", [39, 41, 130])
@torch.inference_mode()
def test_in_windows_it_makes_the_sound_of_the_whole_but_for_the_tails_of_its_filters(
    recorded: BigVGAN, frames: int
) -> None:
    mel = torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(frames)) - 4
    whole = recorded(mel)
    made = bigvgan_sound(recorded, mel, size=40)
    assert made.shape == whole.shape
    assert float((made - whole).abs().max() / whole.abs().max()) < 1e-4


def test_the_recorded_weights_have_exactly_our_names_and_shapes(recorded_state: dict[str, Tensor]) -> None:
    assert len(recorded_state) == 783
    assert shapes(as_stored(network(64))) == shapes(recorded_state)


def test_the_real_size_has_783_names_and_29_million_parameters() -> None:
    stored = as_stored(network(768))
    assert len(stored) == 783
    learned = sum(value.numel() for key, value in stored.items() if not is_filter(key))
    assert round(learned / 1e6, 2) == 29.24


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 20, 33])
@torch.inference_mode()
def test_every_frame_becomes_480_samples(recorded: BigVGAN, frames: int) -> None:
    mel = torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(frames)) - 4
    sound = recorded(mel)
    assert sound.shape == (1, 480 * frames)
    assert torch.isfinite(sound).all()
    assert sound.abs().max() <= 1


@torch.inference_mode()
def test_mels_of_a_batch_do_not_disturb_each_other(recorded: BigVGAN, vectors: dict[str, Tensor]) -> None:
    mel = vectors["in.mel"]
    both = recorded(torch.cat((mel, mel.flip(2))))
    assert_close(both[:1], recorded(mel), 1e-5)
    assert_close(both[1:], recorded(mel.flip(2)), 1e-5)


# The anti-aliased activation


def test_the_filter_is_the_one_that_the_recorded_weights_carry(recorded_state: dict[str, Tensor]) -> None:
    filters = [value for key, value in recorded_state.items() if is_filter(key)]
    assert len(filters) == 218
    for taps in filters:
        torch.testing.assert_close(lowpass(CPU), taps.flatten(), rtol=0, atol=1e-6)


def test_the_filter_lets_low_tones_pass_halves_the_middle_and_stops_high_ones() -> None:
    time = np.arange(12)

    def gain(rate: float) -> float:
        return abs(np.sum(lowpass(CPU).double().numpy() * np.exp(-2j * np.pi * rate * time)))

    for rate in (0.0, 0.05, 0.1):
        assert gain(rate) == pytest.approx(1, abs=0.01)
    assert gain(0.25) == pytest.approx(0.5, abs=0.01)
    for rate in (0.4, 0.45, 0.5):
        assert gain(rate) < 0.002


def test_snake_beta_is_its_formula_in_logarithms() -> None:
    snake = SnakeBeta(3).requires_grad_(False)
    snake.alpha.copy_(torch.tensor([-1.0, 0.0, 0.7]))
    snake.beta.copy_(torch.tensor([0.5, -0.3, 0.0]))
    x = torch.randn(2, 3, 11, generator=torch.Generator().manual_seed(0))
    before = x.clone()
    a, b = snake.alpha.exp()[:, None], snake.beta.exp()[:, None]
    torch.testing.assert_close(snake(x), x + torch.sin(a * x) ** 2 / (b + 1e-9))
    assert torch.equal(x, before)


def cosine(rate: float) -> Tensor:
    """Return a tone of ``rate`` cycles a sample: (1, 1, 400)."""
    return torch.cos(2 * torch.pi * rate * torch.arange(400, dtype=torch.float64))[None, None].float()


def test_an_activation_folds_far_less_back_than_snake_alone_does() -> None:
    """A tone of 0.35 of the rate gets an overtone at 0.7, which a plain Snake mirrors to 0.3."""
    activation = Activation(1).requires_grad_(False)
    tone = 0.9 * cosine(0.35)

    def mirrored(x: Tensor) -> float:
        return float(torch.fft.rfft(x.flatten() * torch.hann_window(400)).abs()[120])  # 0.3 of 400 bins

    assert mirrored(activation(tone, lowpass(CPU))) < 0.3 * mirrored(activation.act(tone))


def test_an_activation_neither_delays_nor_scales_a_slow_sound() -> None:
    activation = Activation(1).requires_grad_(False)
    slow = cosine(0.01)
    bent = activation(slow, lowpass(CPU))
    assert bent.shape == slow.shape
    torch.testing.assert_close(bent[..., 20:380], activation.act(slow)[..., 20:380], rtol=0, atol=5e-3)


def test_an_activation_holds_a_constant_up_to_both_ends() -> None:
    activation = Activation(2).requires_grad_(False)
    level = torch.tensor([0.3, -0.8])[None, :, None].expand(1, 2, 9)
    expected = F.conv1d(activation.act(level), torch.ones(2, 1, 1), groups=2)
    torch.testing.assert_close(activation(level, lowpass(CPU)), expected)


# Folder to sound


@pytest.mark.parametrize("groups", [1, 2, 7])
@torch.inference_mode()
def test_a_bigvgan_folder_speaks_2880_samples_a_group(vocoder: Vocoder, groups: int) -> None:
    sound = spoken(vocoder, groups)
    assert sound.samples.shape == (2880 * groups,)
    assert sound.samples.dtype == np.float32
    assert sound.sample_rate == vocoder.sample_rate == 24000
    assert np.isfinite(sound.samples).all()
    assert np.abs(sound.samples).max() <= 1
    assert sound.samples.std() > 1e-4


def test_two_loads_give_the_same_samples_and_the_seed_does_not_matter(vocoder: Vocoder, folder: Path) -> None:
    mel = torch.randn(1, 80, 12, generator=torch.Generator().manual_seed(0)) - 4
    first = vocoder.sound(mel, seed=1).samples
    assert np.array_equal(first, load_vocoder(folder, CPU).sound(mel, seed=2).samples)


def test_loading_leaves_nothing_to_train_and_everything_in_float32(folder: Path) -> None:
    loaded = load_vocoder(folder, CPU)._hift
    assert isinstance(loaded, BigVGAN)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {(parameter.dtype, parameter.device) for parameter in loaded.parameters()} == {(torch.float32, CPU)}


def test_half_precision_weights_and_a_trainers_prefix_are_accepted(tmp_path: Path, vocoder: Vocoder) -> None:
    write_bigvgan(tmp_path)
    state = torch.load(tmp_path / HIFT_NAME, weights_only=True)
    torch.save({f"generator.{key}": value.bfloat16() for key, value in state.items()}, tmp_path / HIFT_NAME)
    mel = torch.randn(1, 80, 12, generator=torch.Generator().manual_seed(0)) - 4
    half, full = (loaded.sound(mel, seed=0).samples for loaded in (load_vocoder(tmp_path, CPU), vocoder))
    np.testing.assert_allclose(half, full, atol=0.05 * np.abs(full).max())


def test_no_frames_and_frames_that_are_not_finite_are_errors_of_generation(vocoder: Vocoder) -> None:
    with pytest.raises(GenerationError, match="produced no sound"):
        vocoder.sound(torch.zeros(1, 80, 0), seed=0)
    broken = torch.zeros(1, 80, 12)
    broken[0, 0, 3] = torch.inf
    with pytest.raises(GenerationError, match="not finite"):
        vocoder.sound(broken, seed=0)


# Errors


def test_a_yaml_of_one_generator_beside_weights_of_the_other_is_said_in_one_sentence(tmp_path: Path) -> None:
    bigvgan, hift = tmp_path / "bigvgan", tmp_path / "hift"
    bigvgan.mkdir(), hift.mkdir()
    write_bigvgan(bigvgan), write_vocoder(hift, seed=0)
    for folder, weights, named, found in (
        (bigvgan, hift, "BigVGAN", "HiFTGenerator"),
        (hift, bigvgan, "HiFTGenerator", "BigVGAN"),
    ):
        mixed = tmp_path / named
        mixed.mkdir()
        for name, origin in (("cosyvoice.yaml", folder), ("flow.pt", folder), (HIFT_NAME, weights)):
            (mixed / name).write_bytes((origin / name).read_bytes())
        sentence = rf"^hift\.pt in .*{named} .*the weights are those of {found}, but the yaml names {named}; .*\.$"
        with pytest.raises(WeightsError, match=sentence):
            load_vocoder(mixed, CPU)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda state: state.pop("conv_post.weight_v"), r"conv_post\.weight is missing"),
        (lambda state: state.pop("activation_post.act.beta"), r"activation_post\.act\.beta is missing"),
        (lambda state: state.update({"conv_post.bias": torch.zeros(1)}), r"conv_post\.bias is unknown"),
        (
            lambda state: state.update({"conv_pre.bias": torch.zeros(63)}),
            r"conv_pre\.bias has the shape \(63,\) instead of \(64,\)",
        ),
        (
            lambda state: state.update({"ups.0.0.weight_v": torch.ones(64, 32, 10)}),
            r"ups\.0\.0\.weight has the shape \(64, 32, 10\) instead of \(64, 32, 11\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_with_file_and_folder(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], None], problem: str
) -> None:
    folder = changed(write_bigvgan(tmp_path), change)
    with pytest.raises(WeightsError, match=rf"^hift\.pt in .*{tmp_path.name} does not fit .*: {problem}\.$"):
        load_vocoder(folder, CPU)


@pytest.mark.parametrize(
    "taps", [torch.ones(1, 1, 12) / 12, torch.ones(1, 1, 6) / 6, torch.full((1, 1, 12), torch.nan)]
)
def test_another_filter_than_ours_is_refused(tmp_path: Path, taps: Tensor) -> None:
    key = "resblocks.4.activations.3.upsample.filter"
    folder = changed(write_bigvgan(tmp_path), lambda state: state.update({key: taps}))
    with pytest.raises(
        WeightsError, match=rf"^hift\.pt in .*{tmp_path.name} cannot be used: {key} is another low-pass"
    ):
        load_vocoder(folder, CPU)


# The yaml

FLAT = YAML_64.splitlines(keepends=True)
NESTED = "".join([FLAT[0], "    h:\n", *(f"    {line}" for line in FLAT[1:])])
TAGGED = NESTED.replace("h:\n", "h: !new:stepvocoder.cosyvoice2.bigvgan.env.AttrDict\n")


def read(folder: Path, entry: str) -> BigvganConfig:
    (folder / "cosyvoice.yaml").write_text(HEAD + entry, encoding="utf-8")
    config = read_config(folder).hift
    assert isinstance(config, BigvganConfig)
    return config


@pytest.mark.parametrize("entry", [YAML_64, NESTED, TAGGED], ids=["flat", "nested", "tagged"])
def test_the_yaml_is_read_number_for_number_flat_or_nested(tmp_path: Path, entry: str, caplog) -> None:
    config = read(tmp_path, entry)
    assert config == sized(64)
    assert config.frame_samples == 480
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["BigVGAN", "bigvgan.BigVGANGenerator", "a.b.BigVGANv2"])
def test_the_tag_may_be_spelled_otherwise(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, YAML_64.replace("stepvocoder.cosyvoice2.bigvgan.bigvgan.BigVGAN", name)) == sized(64)


SHAPING = (
    "upsample_rates",
    "upsample_kernel_sizes",
    "upsample_initial_channel",
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
)


@pytest.mark.parametrize("entry", [YAML_64, NESTED], ids=["flat", "nested"])
@pytest.mark.parametrize("key", SHAPING)
def test_a_missing_key_that_shapes_the_network_is_named(tmp_path: Path, entry: str, key: str) -> None:
    text = "".join(line for line in entry.splitlines(keepends=True) if f"{key}:" not in line)
    with pytest.raises(WeightsError, match=rf"cosyvoice\.yaml in .*{tmp_path.name}.*hift\.(h\.)?{key}' is missing\.$"):
        read(tmp_path, text)


def test_keys_that_shape_nothing_or_stand_in_mel_conf_may_be_absent(tmp_path: Path) -> None:
    text = "".join(line for line in FLAT if "!new:" in line or any(f"{key}:" in line for key in SHAPING))
    assert read(tmp_path, text) == sized(64)


@pytest.mark.parametrize("entry", [YAML_64, NESTED], ids=["flat", "nested"])
def test_an_unknown_key_is_told_and_ignored(tmp_path: Path, entry: str, caplog) -> None:
    indent = " " * (8 if entry is NESTED else 4)
    assert read(tmp_path, f"{entry}{indent}surprise: 1\n") == sized(64)
    assert "surprise' is not known and is ignored" in caplog.text


def test_a_key_beside_a_nested_mapping_is_told_and_ignored(tmp_path: Path, caplog) -> None:
    assert read(tmp_path, f"{NESTED}    use_cuda_kernel: false\n    surprise: 1\n") == sized(64)
    assert caplog.messages == [f"cosyvoice.yaml in {tmp_path}: 'hift.surprise' is not known and is ignored."]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("channel: 64", "channel: 96", "'hift.upsample_initial_channel' must be a multiple of 64"),
        ("channel: 64", "channel: big", "upsample_initial_channel' must be a whole number of at least 1, not 'big'"),
        ("[5, 4, 3, 2, 2, 2]", "[5, 4, 3, 2, 2]", "the lists of 'hift' differ in length"),
        ("[5, 4, 3, 2, 2, 2]", "[5, 4, 3, 2, 2, 4]", "a mel frame is 480 samples in mel_conf, but 960 in hift"),
        ("[11, 8, 7, 4, 4, 4]", "[10, 8, 7, 4, 4, 4]", "must exceed its rate by an even number"),
        ("[11, 8, 7, 4, 4, 4]", "[3, 8, 7, 4, 4, 4]", "must exceed its rate by an even number"),
        ("[3, 7, 11]", "[3, 7, 10]", "'hift.resblock_kernel_sizes' must be odd"),
        ("[3, 7, 11]", "[3, 7]", "the lists of 'hift' differ in length"),
        ("resblock: '1'", "resblock: '2'", "resblock' is '2', but only '1' is supported"),
        ("'snakebeta'", "'snake'", "activation' is 'snake', but only 'snakebeta' is supported"),
        ("logscale: true", "logscale: false", "snake_logscale' is False, but only True is supported"),
        ("bias_at_final: false", "bias_at_final: true", "use_bias_at_final' is True, but only False is supported"),
        ("tanh_at_final: false", "tanh_at_final: true", "use_tanh_at_final' is True, but only False is supported"),
        ("num_mels: 80", "num_mels: 100", "name 80, 80 and 100 mel channels"),
        ("num_mels: 80", "sampling_rate: 22050", "the rate is 24000 Hz in mel_conf, but 22050 Hz in hift"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in YAML_64
    for entry in (YAML_64, NESTED):
        with pytest.raises(WeightsError, match=sentence) as caught:
            read(tmp_path, entry.replace(old, new))
        assert str(tmp_path) in str(caught.value)
        assert str(caught.value).endswith(".")
        assert "\n" not in str(caught.value)


def test_a_nested_mapping_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"'hift\.h' must be a mapping, not 'config\.json'"):
        read(tmp_path, f"{FLAT[0]}    h: config.json\n")


def test_an_unquoted_one_names_the_same_block(tmp_path: Path) -> None:
    assert read(tmp_path, YAML_64.replace("resblock: '1'", "resblock: 1")) == sized(64)
