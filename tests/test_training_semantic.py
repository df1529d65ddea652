"""Training of the semantic tokenizer: the bottleneck, the labels, and an export that the product loads."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio import audio
from stepaudio.encoder.s3 import SemanticEncoder
from stepaudio.features import WHISPER_MELS, whisper_log_power
from training.data import Example, mel_of
from training.exported import exported_tokenizer
from training.phones import IGNORED, SILENCE, classes
from training.semantic import (
    BANDS,
    CEPSTRA,
    HEARING,
    HEARING_HEADS,
    LAYERS,
    LEVELS,
    WIDTH,
    Bottleneck,
    Teacher,
    Tokenizer,
    augmented,
    band_shares,
    begin_with,
    envelope,
    export,
    gathered,
    labels_of,
    loss_of,
    pitch_course,
    positions,
    usable,
)
from training.shards import ClipRecord
from training.stored import as_bytes, compact
from training.whisper import Encoder

from .conftest import voice


def example(frames: int, phones: str = "", bounds: tuple[int, ...] = ()) -> Example:
    mel = np.random.default_rng(frames).uniform(-1, 1.5, (frames, 128)).astype(np.float16)
    return Example(ClipRecord("n", "s", 0, 16000, 16000, "en", "text", phones, bounds), mel, 0)


def test_every_code_of_the_bottleneck_can_occur_and_none_beyond() -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck()
    with torch.no_grad():
        codes = bottleneck.codes(torch.randn(200_000, WIDTH) * 3)
    assert int(codes.min()) == 0
    assert int(codes.max()) == math.prod(LEVELS) - 1
    assert len(codes.unique()) == math.prod(LEVELS)


def test_equal_codes_come_out_of_the_bottleneck_equal() -> None:
    torch.manual_seed(0)
    bottleneck = Bottleneck()
    x = torch.randn(3000, WIDTH)
    with torch.no_grad():
        codes, out = bottleneck.codes(x), bottleneck(x)
    first = {int(code): place for place, code in reversed(list(enumerate(codes)))}
    torch.testing.assert_close(out, torch.stack([out[first[int(code)]] for code in codes]))


def test_gradients_pass_the_rounding() -> None:
    torch.manual_seed(0)
    model = Teacher()
    batch = [example(80, "hɛlO", (0, 3000, 6000, 9000, 12000)), example(101, "hɛlO")]
    clean = [torch.from_numpy(one.bank.astype(np.float32)) for one in batch]
    logits, sound = model(*gathered(clean))
    loss_of(logits, sound, batch, clean, [np.full(40, 120.0, np.float32), None]).backward()
    trained = [(name, value.grad) for name, value in model.named_parameters() if value.requires_grad]
    assert [name for name, grad in trained if grad is None or not grad.any()] == []


def test_a_clip_beside_a_longer_one_gets_the_codes_that_it_gets_alone() -> None:
    torch.manual_seed(0)
    tokenizer = Teacher().tokenizer.eval()
    mels = [torch.rand(frames, 128) for frames in (57, 200, 130)]
    with torch.no_grad():
        together, mask = tokenizer.encode(*gathered(mels))
        for row, mel in enumerate(mels):
            alone, _ = tokenizer.encode(*gathered([mel]))
            assert int(mask[row].sum()) == alone.shape[1] == -(-len(mel) // 4)
            torch.testing.assert_close(together[row, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)


def test_the_export_gives_the_product_the_codes_of_training(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Teacher().eval()
    with pytest.warns(DeprecationWarning, match="legacy"):
        export(model, tmp_path / "speech_tokenizer_v1.onnx")
    encoder = SemanticEncoder(tmp_path / "speech_tokenizer_v1.onnx", device=torch.device("cpu"), threads=1)
    for seconds in (0.5, 1.23, 3.0):
        sound = voice(seconds)
        mel, _ = mel_of(sound.samples, sound.sample_rate)
        with torch.no_grad():
            codes = model.tokenizer(*gathered([torch.from_numpy(mel.astype(np.float32))]))[0]
        np.testing.assert_array_equal(encoder.encode_features(mel.T.astype(np.float32)), codes)
        heard = audio.prepare_for_codes(audio.limit_peak(sound))
        assert len(encoder.encode(heard)) == len(codes)


def test_labels_lie_beside_the_mel_frame_of_their_code() -> None:
    one = example(8, "d", (0, 480))  # 30 ms: mel frames 0 to 2
    assert labels_of(one).tolist() == [SILENCE, *classes("d"), SILENCE, SILENCE]
    assert labels_of(example(8)).tolist() == [IGNORED] * 4


def test_the_envelope_has_two_rows_for_each_code_and_no_bias() -> None:
    mel = torch.rand(41, 128)
    rows = envelope(mel)
    assert rows.shape == (2 * 11, CEPSTRA)
    torch.testing.assert_close(rows.mean(0), torch.zeros(CEPSTRA), atol=1e-5, rtol=0)
    torch.testing.assert_close(envelope(mel + 0.7), rows, atol=1e-4, rtol=0)


def test_the_course_of_the_pitch_knows_no_octave_and_has_holes_where_nothing_is_voiced() -> None:
    pitch = np.array([100, 100, 0, 200, 100], np.float32)
    course = pitch_course(pitch, 7).numpy()
    np.testing.assert_allclose(course, [0, 0, np.nan, 3, 0, np.nan, np.nan])  # an octave is 4, held to 3
    np.testing.assert_allclose(pitch_course(2 * pitch, 7).numpy(), course)
    assert np.isnan(pitch_course(np.zeros(5, np.float32), 5).numpy()).all()


def test_it_hears_what_whispers_first_layers_hear() -> None:
    torch.manual_seed(0)
    whisper = Encoder(BANDS, HEARING, LAYERS + 1, HEARING_HEADS, 100).eval()
    tokenizer = Tokenizer().eval()
    sound = voice(1.2)
    wide = torch.from_numpy(mel_of(sound.samples, sound.sample_rate)[0].astype(np.float32)).T[None]
    with torch.no_grad():
        whisper.positions.copy_(positions(torch.zeros(1, 100, HEARING)))
        begin_with(tokenizer, whisper)
        for weight in (*whisper.conv1.parameters(), *whisper.conv2.parameters(), *whisper.layers.parameters()):
            weight.copy_(as_bytes(weight))
        expected = whisper(tokenizer.narrow(wide))[LAYERS - 1]
        found, mask = tokenizer.hear(wide, torch.tensor([wide.shape[2]], dtype=torch.int32))
    assert bool(mask.all())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_of_the_wide_mel_it_makes_about_the_narrow_one_that_whisper_tiny_knows() -> None:
    tokenizer = Tokenizer().eval()
    sound = audio.prepare_for_codes(voice(2.0))
    wide, narrow = (
        torch.from_numpy((np.asarray(whisper_log_power(sound, bands)) + 4) / 4) for bands in (WHISPER_MELS, BANDS)
    )
    with torch.no_grad():
        tokenizer.bands.weight.copy_(band_shares()[:, :, None])
        found = tokenizer.narrow(wide[None])[0]
    assert found.shape == narrow.shape
    loud = narrow > narrow.max() - 1  # a fourth of it is 10 dB
    assert float((found - narrow)[loud].abs().mean()) < 0.02


def test_what_is_whispers_is_not_trained() -> None:
    tokenizer = Tokenizer()
    trained = {name.split(".")[0] for name, one in tokenizer.named_parameters() if one.requires_grad}
    assert trained == {"heard", "pair", "blocks", "norm", "bottleneck"}


def test_positions_are_waves_from_two_pi_frames_to_ten_thousand_times_that() -> None:
    found = positions(torch.zeros(1, 50, HEARING))
    half, frames = HEARING // 2, torch.arange(50.0)
    torch.testing.assert_close(found[:, 0], frames.sin())
    torch.testing.assert_close(found[:, half - 1], (frames / 10_000).sin())
    torch.testing.assert_close(found[:, half], frames.cos())


def test_stored_it_is_a_third_and_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, whisper = Teacher().eval(), Encoder(BANDS, HEARING, LAYERS, HEARING_HEADS, 100)
    with torch.no_grad():  # what is equal would be stored once
        for value in (*model.parameters(), *whisper.parameters()):
            value += 0.01 * torch.randn_like(value)
        begin_with(model.tokenizer, whisper)
    path = tmp_path / "speech_tokenizer_v1.onnx"
    with pytest.warns(DeprecationWarning, match="legacy"):
        export(model, path)
    mel, _ = mel_of(voice(3.0).samples, voice(3.0).sample_rate)
    features = mel.T.astype(np.float32)

    def codes() -> np.ndarray:
        return SemanticEncoder(path, device=torch.device("cpu"), threads=1).encode_features(features)

    before, size = codes(), path.stat().st_size
    compact(path)
    assert path.stat().st_size < 0.3 * size
    assert (codes() == before).mean() > 0.97
    # And what training begins with again is what the file says.
    with torch.no_grad():
        again = exported_tokenizer(path).eval()(*gathered([torch.from_numpy(mel.astype(np.float32))]))[0]
    assert (again.numpy() == codes()).mean() > 0.97


def test_held_out_speakers_and_clips_without_phonemes_are_not_trained_on() -> None:
    assert usable(example(100, "hɛlO"), frozenset())
    assert not usable(example(100, "hɛlO"), frozenset({"s"}))
    assert not usable(example(100), frozenset())


def test_augmentation_repeats_with_its_seed() -> None:
    mel = torch.rand(300, 128)
    one, two = (augmented(mel, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, mel)
