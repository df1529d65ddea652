from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.errors import Cancelled, GenerationError, InvalidInput, WeightsError
from stepaudio.tiny.vocoder import write_vocoder
from stepaudio.types import SpeechTokens, Waveform
from stepaudio.vocoder.noise import FLOW_NOISE, SOURCE_NOISE, draw_noise
from stepaudio.vocoder.vocoder import FlowOrder, Vocoder, _side_by_side, load_vocoder
from tests.token_kit import pad_to_groups_as_upstream
from tests.vocoder_recordings import MEL, Recordings, assert_close, speech, voice_of

CPU = torch.device("cpu")
MEL_FRAMES_PER_GROUP, SAMPLES_PER_GROUP = 6, 2880


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocoder")
    write_vocoder(path, seed=0)
    return path


@pytest.fixture(scope="module")
def vocoder(folder: Path) -> Iterator[Vocoder]:
    with torch.inference_mode():
        yield load_vocoder(folder, CPU)


def spoken(vocoder: Vocoder, groups: int = 4, *, prompt_groups: int = 3, seed: int = 7, steps: int = 2) -> Waveform:
    mel, speaker = voice_of()
    frames = vocoder.flow(speech(groups), speech(prompt_groups, seed=1), mel, speaker, seed=seed, steps=steps)
    return vocoder.sound(frames, seed=seed)


@pytest.mark.parametrize("groups", [1, 2, 5, 42])
@pytest.mark.parametrize("prompt_groups", [1, 9])
def test_every_group_becomes_2880_samples_within_the_limit(vocoder: Vocoder, groups: int, prompt_groups: int) -> None:
    mel, speaker = voice_of()
    frames = vocoder.flow(speech(groups), speech(prompt_groups, seed=1), mel, speaker, seed=3, steps=2)
    assert frames.shape == (1, 80, MEL_FRAMES_PER_GROUP * groups)
    assert frames.dtype == torch.float32
    sound = vocoder.sound(frames, seed=3)
    assert sound.samples.shape == (SAMPLES_PER_GROUP * groups,)
    assert sound.samples.dtype == np.float32
    assert sound.sample_rate == vocoder.sample_rate == 24000
    assert np.isfinite(sound.samples).all()
    assert np.abs(sound.samples).max() <= 0.99


def test_the_flow_agrees_with_the_recording_when_it_is_given_its_noise(
    conformance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recordings(conformance)
    vocoder = load_vocoder(conformance / "vocoder" / "CosyVoice-300M-25Hz", CPU)
    monkeypatch.setattr("stepaudio.vocoder.vocoder.draw_noise", lambda *_: recorded.noise())
    mel = vocoder.flow(
        SpeechTokens(pad_to_groups_as_upstream(recorded["in.token"].numpy())),
        SpeechTokens(recorded["in.prompt_token"].numpy()),
        recorded["in.prompt_feat"][0].numpy(),
        recorded["in.embedding"][0].numpy(),
        seed=0,
    )
    assert_close(mel, recorded["out.mel"], MEL)


def test_one_seed_gives_the_same_samples_in_two_loads(vocoder: Vocoder, folder: Path) -> None:
    again = load_vocoder(folder, CPU)
    assert np.array_equal(spoken(vocoder).samples, spoken(again).samples)


def test_another_seed_gives_another_mel_and_another_sound(vocoder: Vocoder) -> None:
    mel, speaker = voice_of()
    prompt = speech(3, seed=1)
    first = vocoder.flow(speech(4), prompt, mel, speaker, seed=1, steps=2)
    second = vocoder.flow(speech(4), prompt, mel, speaker, seed=2, steps=2)
    assert not torch.equal(first, second)
    assert not np.array_equal(vocoder.sound(first, seed=1).samples, vocoder.sound(first, seed=2).samples)


def test_calls_side_by_side_do_not_disturb_each_other(vocoder: Vocoder) -> None:
    alone = [spoken(vocoder, groups, seed=groups).samples for groups in (2, 3, 4, 5)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda groups: spoken(vocoder, groups, seed=groups).samples, (2, 3, 4, 5)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def several(*groups: int) -> list[FlowOrder]:
    """Return orders of other tokens, prompts, voices and seeds; so many groups each."""
    orders = []
    for number, count in enumerate(groups):
        mel, speaker = voice_of(seed=number, frames=30 + 5 * number)
        prompt = speech(3 + number % 3, seed=10 + number)
        orders.append(FlowOrder(speech(count, seed=number), prompt, mel, speaker, seed=number))
    return orders


def alone(vocoder: Vocoder, order: FlowOrder, steps: int) -> torch.Tensor:
    return vocoder.flow(
        order.tokens, order.prompt_tokens, order.prompt_mel, order.speaker, seed=order.seed, steps=steps
    )


def at_once(vocoder: Vocoder, rows: int) -> Vocoder:
    """Return the same networks, which take so many rows at once."""
    return Vocoder(vocoder.config, vocoder._flow, vocoder._hift, CPU, rows_at_once=rows)


@pytest.mark.parametrize("groups", [(4, 4, 4), (9, 1, 4, 5, 2), (1, 40), (3,)])
@pytest.mark.parametrize("rows", [1, 60, 10_000])
def test_mels_made_side_by_side_are_those_made_alone(vocoder: Vocoder, groups: tuple[int, ...], rows: int) -> None:
    orders = several(*groups)
    together = at_once(vocoder, rows).flow_many(orders, steps=3)
    for order, mel in zip(orders, together, strict=True):
        expected = alone(vocoder, order, 3)
        assert mel.shape == (1, 80, MEL_FRAMES_PER_GROUP * order.tokens.groups)
        assert_close(mel, expected, 1e-5)


def test_sounds_of_the_recorded_size_side_by_side_agree_with_the_recording(
    conformance: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recordings(conformance)
    vocoder = at_once(load_vocoder(conformance / "vocoder" / "CosyVoice-300M-25Hz", CPU), 10_000)
    monkeypatch.setattr(
        "stepaudio.vocoder.vocoder.draw_noise",
        lambda seed, stream, length, channels: (
            recorded.noise() if seed == 0 else draw_noise(seed, stream, length, channels)
        ),
    )
    told = FlowOrder(
        SpeechTokens(pad_to_groups_as_upstream(recorded["in.token"].numpy())),
        SpeechTokens(recorded["in.prompt_token"].numpy()),
        recorded["in.prompt_feat"][0].numpy(),
        recorded["in.embedding"][0].numpy(),
        seed=0,
    )
    shorter, longer = several(0, 2, 50)[1:]
    assert vocoder.config.flow.guidance > 0, "the rows without conditions are filled up, too"
    assert_close(vocoder.flow_many([longer, told, shorter])[1], recorded["out.mel"], MEL)


def test_sounds_side_by_side_take_as_many_steps_as_one(vocoder: Vocoder, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = vocoder._flow.decoder.estimator
    estimate, sizes = estimator.forward, []

    def counted(x: torch.Tensor, *rest: object) -> torch.Tensor:
        sizes.append(len(x))
        return estimate(x, *rest)

    monkeypatch.setattr(estimator, "forward", counted)
    at_once(vocoder, 10_000).flow_many(several(4, 5, 6), steps=2)
    assert sizes == [3, 3]
    sizes.clear()
    vocoder.flow_many(several(4, 5, 6), steps=2)
    assert sizes == [1] * 6, "a CPU takes one after another"


def test_no_more_rows_than_allowed_go_at_once_and_the_filling_counts() -> None:
    for lengths, most, expected in (
        ([5, 5, 5, 5], 10, [[0, 1], [2, 3]]),
        ([9, 2, 3], 9, [[1, 2], [0]]),
        ([30, 1], 10, [[1], [0]]),
        ([], 10, []),
    ):
        assert list(_side_by_side(lengths, most)) == expected


def test_the_progress_of_several_sounds_rises_to_one_and_a_stop_ends_all(vocoder: Vocoder) -> None:
    heard: list[float] = []
    at_once(vocoder, 60).flow_many(several(4, 5, 30), steps=2, progress=heard.append)
    assert heard == pytest.approx([1 / 3, 2 / 3, 5 / 6, 1.0])
    with pytest.raises(Cancelled):
        at_once(vocoder, 60).flow_many(several(4, 5, 30), steps=2, should_stop=lambda: len(heard) > 0)


def test_one_bad_sound_among_several_is_told(vocoder: Vocoder) -> None:
    orders = several(4, 0)
    with pytest.raises(GenerationError, match="produced no sound"):
        vocoder.flow_many(orders, steps=1)
    broken = several(4, 4)
    broken[1].prompt_mel[:] = np.nan
    with pytest.raises(GenerationError, match="not finite"):
        at_once(vocoder, 1000).flow_many(broken, steps=1)


def test_the_prompt_decides_over_the_voice(vocoder: Vocoder) -> None:
    mel, speaker = voice_of()
    other_mel, other_speaker = voice_of(seed=9)
    base = vocoder.flow(speech(2), speech(3, seed=1), mel, speaker, seed=0, steps=2)
    for changed in (
        vocoder.flow(speech(2), speech(3, seed=2), mel, speaker, seed=0, steps=2),
        vocoder.flow(speech(2), speech(3, seed=1), other_mel, speaker, seed=0, steps=2),
        vocoder.flow(speech(2), speech(3, seed=1), mel, other_speaker, seed=0, steps=2),
    ):
        assert (changed - base).abs().max() > 1e-3


def test_a_read_only_and_a_very_short_prompt_mel_serve(vocoder: Vocoder) -> None:
    mel, speaker = voice_of(frames=1)
    mel.flags.writeable = False
    speaker.flags.writeable = False
    frames = vocoder.flow(speech(1), speech(9, seed=1), mel, speaker, seed=0, steps=1)
    assert torch.isfinite(frames).all()


def test_noise_is_standard_and_its_streams_and_seeds_are_independent() -> None:
    flow, source = draw_noise(5, FLOW_NOISE, 4000, 80), draw_noise(5, SOURCE_NOISE, 4000, 80)
    other = draw_noise(6, FLOW_NOISE, 4000, 80)
    assert flow.shape == (1, 4000, 80)
    assert abs(flow.mean()) < 0.01
    assert abs(flow.std() - 1) < 0.01
    for pair in ((flow, source), (flow, other)):
        assert abs((pair[0] * pair[1]).mean()) < 0.01
    assert torch.equal(flow, draw_noise(5, FLOW_NOISE, 4000, 80))


def test_noise_does_not_touch_the_global_generator() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw_noise(1, FLOW_NOISE, 10, 80)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("stream", "channels", "frame"), [(FLOW_NOISE, 80, 1), (SOURCE_NOISE, 1, 480)])
def test_longer_noise_begins_with_the_shorter_one(stream: int, channels: int, frame: int) -> None:
    long = draw_noise(1, stream, 100 * frame, channels)
    for frames in (1, 3, 50):
        assert torch.equal(draw_noise(1, stream, frames * frame, channels), long[:, : frames * frame])


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, 2**80])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    assert torch.isfinite(draw_noise(seed, FLOW_NOISE, 2, 80)).all()


def test_loading_leaves_nothing_to_train_and_everything_in_float32(folder: Path) -> None:
    loaded = load_vocoder(folder, CPU)
    for network in (loaded._flow, loaded._hift):
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert {parameter.device for parameter in network.parameters()} == {CPU}
        assert not list(network.buffers())


def test_no_gradient_is_recorded_outside_inference_mode_either(folder: Path) -> None:
    mel, speaker = voice_of()
    frames = load_vocoder(folder, CPU).flow(speech(1), speech(1), mel, speaker, seed=0, steps=1)
    assert not frames.requires_grad


def test_progress_is_heard_and_a_stop_obeyed(vocoder: Vocoder) -> None:
    mel, speaker = voice_of()
    heard: list[float] = []
    vocoder.flow(speech(1), speech(1), mel, speaker, seed=0, steps=2, progress=heard.append)
    assert heard == [0.5, 1.0]
    with pytest.raises(Cancelled):
        vocoder.flow(speech(1), speech(1), mel, speaker, seed=0, should_stop=lambda: True)


def test_no_tokens_are_an_error_of_generation(vocoder: Vocoder) -> None:
    mel, speaker = voice_of()
    with pytest.raises(GenerationError, match="produced no sound"):
        vocoder.flow(speech(0), speech(1), mel, speaker, seed=0)
    with pytest.raises(GenerationError, match="produced no sound"):
        vocoder.sound(torch.zeros(1, 80, 0), seed=0)


def test_a_prompt_without_a_group_or_mel_is_the_users_to_mend(vocoder: Vocoder) -> None:
    mel, speaker = voice_of()
    with pytest.raises(InvalidInput, match=r"at least 0\.12 seconds"):
        vocoder.flow(speech(1), speech(0), mel, speaker, seed=0)
    with pytest.raises(InvalidInput, match=r"at least 0\.12 seconds"):
        vocoder.flow(speech(1), speech(1), mel[:0], speaker, seed=0)


def test_less_than_one_step_is_refused(vocoder: Vocoder) -> None:
    mel, speaker = voice_of()
    with pytest.raises(InvalidInput, match="at least 1, not 0"):
        vocoder.flow(speech(1), speech(1), mel, speaker, seed=0, steps=0)


@pytest.mark.parametrize("number", [5120, 9000, -2])
def test_numbers_that_are_no_audio_are_an_error_of_generation(vocoder: Vocoder, number: int) -> None:
    mel, speaker = voice_of()
    tokens = SpeechTokens(np.array([1, 2, 1030, 1031, number]))
    with pytest.raises(GenerationError, match="stand for no sound"):
        vocoder.flow(tokens, speech(1), mel, speaker, seed=0)


def test_what_is_not_finite_does_not_leave_the_vocoder(vocoder: Vocoder) -> None:
    mel, speaker = voice_of()
    mel[3, 5] = np.nan
    with pytest.raises(GenerationError, match="not finite"):
        vocoder.flow(speech(1), speech(9), mel, speaker, seed=0, steps=1)
    broken = torch.zeros(1, 80, 12)
    broken[0, 0, 3] = torch.inf
    with pytest.raises(GenerationError, match="not finite"):
        vocoder.sound(broken, seed=0)


@pytest.mark.parametrize("name", ["cosyvoice.yaml", "flow.pt", "hift.pt"])
def test_each_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write_vocoder(tmp_path, seed=0)
    (tmp_path / name).unlink()
    with pytest.raises(WeightsError, match=f"^{name} is missing in .*{tmp_path.name}"):
        load_vocoder(tmp_path, CPU)


def test_weights_of_other_sizes_than_the_yaml_are_refused(tmp_path: Path) -> None:
    write_vocoder(tmp_path, seed=0)
    path = tmp_path / "cosyvoice.yaml"
    path.write_text(path.read_text().replace("base_channels: 32", "base_channels: 64"))
    with pytest.raises(WeightsError, match=r"^hift\.pt in .* does not fit .* has the shape"):
        load_vocoder(tmp_path, CPU)


def test_a_prefixed_generator_is_loaded_alike(tmp_path: Path) -> None:
    write_vocoder(tmp_path, seed=0)
    plain = spoken(load_vocoder(tmp_path, CPU), 1)
    state = torch.load(tmp_path / "hift.pt", weights_only=True)
    torch.save({f"generator.{key}": value for key, value in state.items()}, tmp_path / "hift.pt")
    assert np.array_equal(spoken(load_vocoder(tmp_path, CPU), 1).samples, plain.samples)
