"""Training of the linguistic encoder: labels, the batched pass, and an export that the product loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.encoder.paraformer import load_linguistic
from stepaudio.encoder.sanm import SanmConfig, SanmEncoder
from stepaudio.features import whisper_log_mel
from stepaudio.tiny.encoder import FUNASR_FOLDER
from training import linguistic_export
from training.data import (
    BINS,
    RATE,
    WINDOW,
    Example,
    bank_of,
    batches,
    cache_features,
    filterbank,
    heard,
    read_examples,
    stretched,
    whisper_centres,
)
from training.linguistic import Quantised, Recogniser, assign, augmented, labels_of, loss_of, usable
from training.linguistic_export import k_means, rounded, write_folder
from training.phones import CLASSES, IGNORED, SILENCE, classes, collapsed, frame_labels
from training.shards import Clip, ClipRecord, write_shard
from training.windows import encode_together, layout

from .conftest import voice

SMALL = SanmConfig(
    input_size=560, size=32, heads=4, linear_units=48, blocks=2, kernel_size=11, left_context=5, norm_eps=1e-12
)


def record(phones: str = "", bounds: tuple[int, ...] = (), speaker: str = "s") -> ClipRecord:
    return ClipRecord("name", speaker, 0, 16000, 16000, "en", "text", phones, bounds)


def example(frames: int, phones: str = "", bounds: tuple[int, ...] = ()) -> Example:
    noise = np.random.default_rng(frames).standard_normal((6 * frames - 2, 80)).astype(np.float16)
    return Example(record(phones, bounds), noise, 0)


def test_clips_together_give_the_frames_of_the_products_network_clip_by_clip() -> None:
    torch.manual_seed(0)
    network = SanmEncoder(SMALL).eval()
    clips = [torch.randn(count, 560) for count in (4, 40, 8, 24)]
    with torch.inference_mode():
        together = encode_together(network, torch.cat(clips), layout([6 * len(clip) - 2 for clip in clips]))
        alone = torch.cat([network(clip) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_clip_without_whole_windows_is_refused() -> None:
    with pytest.raises(ValueError, match="whole windows"):
        layout([6 * 8 - 2, 6 * 6 - 2])


def test_the_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = Recogniser(SMALL, torch.zeros(80), torch.ones(80))
    batch = [example(16, "hɛlO", (0, 3000, 6000, 9000, 15000)), example(12, "hɛlO")]
    loss_of(model([torch.from_numpy(np.asarray(one.bank, np.float32)) for one in batch]), batch).backward()
    assert [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_quantised_frames_are_centroids_which_follow_them_and_gradients_pass() -> None:
    torch.manual_seed(0)
    model = Quantised(SMALL, torch.zeros(80), torch.ones(80), torch.randn(6, SMALL.size))
    batch = [example(16, "hɛlO", (0, 3000, 6000, 9000, 15000)), example(12, "hɛlO")]
    banks = [torch.from_numpy(np.asarray(one.bank, np.float32)) for one in batch]
    distances = []
    for _ in range(400):
        loss = loss_of(model(banks), batch)
        distances.append(float(model.commitment.detach()))
    assert distances[-1] < 0.8 * distances[0]  # the weights are untouched: the centroids have come nearer
    assert len(model.codes(banks).unique()) > 3
    loss.backward()
    assert model.encoder.after_norm.weight.grad.any()
    model.eval()
    before = model.centroids.clone()
    with torch.no_grad():
        found, codes = model.frames(banks), model.codes(banks)
    torch.testing.assert_close(found, before[codes])
    assert torch.equal(model.centroids, before)


def test_labels_follow_the_bounds_and_stress_belongs_to_the_vowel_after_it() -> None:
    h, vowel = classes("hɛ")
    labels = frame_labels("hˈɛ.", (10, 20, 30, 40, 50), np.array([5, 15, 25, 35, 45, 55]))
    assert labels.tolist() == [SILENCE, h, vowel, vowel, SILENCE, SILENCE]


def test_the_time_of_a_space_is_ignored_unless_it_is_a_pause() -> None:
    d = classes("d")[0]
    assert frame_labels("d d", (0, 1, 2, 3), np.array([0.5, 1.5, 2.5])).tolist() == [d, IGNORED, d]
    assert frame_labels("d, d", (0, 1, 2, 3, 4), np.array([0.5, 1.5, 2.5, 3.5])).tolist() == [d, SILENCE, SILENCE, d]


def test_a_clip_without_phonemes_has_no_labels() -> None:
    assert labels_of(example(8)).tolist() == [IGNORED] * 16


def test_labels_are_counted_from_where_the_silence_was_cut_off() -> None:
    one = replace(example(4, "d", (16000, 17000)), offset=16000)
    assert labels_of(one).tolist() == [*classes("dd"), *[SILENCE] * 6]


def test_repeated_answers_are_one_phoneme_and_silence_parts_two() -> None:
    assert collapsed([0, 3, 3, 0, 3, 5, 5, 0]) == [3, 3, 5]


def test_silence_is_no_phoneme() -> None:
    assert SILENCE not in classes("hˈɛlˌO, (wˈɜɹld)!")
    assert max(classes("hˈɛlˌO, wˈɜɹld!")) < CLASSES


def test_the_held_out_speakers_are_not_trained_on() -> None:
    one = example(40, "hɛlO")
    assert usable(one, frozenset())
    assert not usable(one, frozenset({"s"}))


def test_the_filterbank_stacked_is_what_the_product_hears(tiny_weights: Path) -> None:
    folder = next(tiny_weights.rglob(FUNASR_FOLDER))
    encoder = load_linguistic(
        folder, tiny_weights / "Step-Audio-Tokenizer" / "linguistic_tokenizer.npy", device=torch.device("cpu")
    )
    front = replace(encoder._fbank, shift=None, scale=None)
    samples, _ = heard(voice(2.0).samples, 24000)
    assert len(samples) % WINDOW == 0
    bank = filterbank(samples)
    torch.testing.assert_close(bank[layout([len(bank)]).stack].flatten(1), front(samples))


def test_filterbanks_are_made_once_and_read_in_the_order_of_the_clips(tmp_path: Path) -> None:
    clips = [Clip(f"c{n}", "s", voice(0.5 + 0.3 * n, seed=n).samples, 24000) for n in range(3)]
    write_shard(tmp_path / "clips", 0, clips)
    assert cache_features(tmp_path / "clips", tmp_path / "banks", bank_of) == 1
    assert cache_features(tmp_path / "clips", tmp_path / "banks", bank_of) == 0
    found = list(read_examples(tmp_path / "clips", tmp_path / "banks"))
    assert [one.record.name for one in found] == ["c0", "c1", "c2"]
    for clip, one in zip(clips, found, strict=True):
        bank = filterbank(heard(clip.samples, clip.rate)[0])
        np.testing.assert_allclose(one.bank, bank.clamp(min=-15), atol=0.02)


def test_batches_hold_every_clip_once_and_not_too_many_frames() -> None:
    lengths = np.random.default_rng(0).integers(4, 100, 200).tolist()
    found = batches(lengths, 300, 1, 0)
    assert sorted(clip for batch in found for clip in batch) == list(range(200))
    assert max(sum(lengths[clip] for clip in batch) for batch in found) <= 300
    assert batches(lengths, 300, 1, 0) == found != batches(lengths, 300, 1, 1)


def test_augmentation_repeats_with_its_seed_and_keeps_the_shape() -> None:
    bank = torch.randn(400, 80) + 12
    one, two = (augmented(bank, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two)
    assert one.shape == bank.shape
    assert not torch.equal(one, bank)


def test_k_means_ends_where_every_centroid_is_the_mean_of_what_is_nearest_to_it() -> None:
    points = torch.randn(600, 4, generator=torch.Generator().manual_seed(1))
    centroids = k_means(points, 16, 200, 0)
    nearest, _ = assign(points, centroids)
    means = torch.stack([points[nearest == number].mean(0) for number in range(16)])
    torch.testing.assert_close(centroids, means, rtol=1e-4, atol=1e-5)


def test_k_means_leaves_no_centroid_without_points_even_where_many_begin_at_one_place() -> None:
    points = torch.cat((torch.zeros(500, 2), torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) + 9))
    nearest, _ = assign(points, k_means(points, 8, 30, 0))
    assert len(nearest.unique()) == 8


def test_the_export_loads_through_the_product_and_gives_the_frames_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linguistic_export, "CONFIG", SMALL)
    torch.manual_seed(0)
    model = rounded(Recogniser(SMALL, torch.linspace(8, 12, 80), torch.linspace(2, 4, 80)).eval())
    centroids = torch.randn(1024, SMALL.size)
    write_folder(model, centroids, tmp_path)
    encoder = load_linguistic(
        tmp_path / FUNASR_FOLDER, tmp_path / "linguistic_tokenizer.npy", device=torch.device("cpu")
    )
    samples, _ = heard(voice(2.0).samples, 24000)
    with torch.inference_mode():
        frames = model.frames([filterbank(samples)])
    np.testing.assert_allclose(encoder.frames(samples), frames, atol=2e-4)
    np.testing.assert_array_equal(encoder.encode(samples), assign(frames, centroids)[0])


def kaldi_centres() -> np.ndarray:
    """Return the middle of every bin of the filterbank in Hz, (80,): mel = 1127 ln(1 + f / 700), 20 Hz to 8 kHz."""
    low, high = (1127 * np.log1p(hz / 700) for hz in (20.0, RATE / 2))
    return np.asarray(700 * np.expm1(np.linspace(low, high, BINS + 2)[1:-1] / 1127))


@pytest.mark.parametrize("centres", [kaldi_centres(), whisper_centres()], ids=["kaldi", "whisper"])
def test_stretching_moves_a_peak_to_where_a_shorter_throat_has_it(centres: np.ndarray) -> None:
    rows = torch.from_numpy(np.exp(-(((centres - 2000) / 150) ** 2))[None].astype(np.float32))
    assert abs(float(centres[stretched(rows, centres, 1 / 1.15)[0].argmax()]) - 2300) < 100
    assert abs(float(centres[stretched(rows, centres, 1.15)[0].argmax()]) - 2000 / 1.15) < 100
    torch.testing.assert_close(stretched(rows, centres, 1.0), rows)


def test_the_middles_of_the_filterbanks_bins_are_where_a_tone_is_heard() -> None:
    for hz in (300.0, 1000.0, 3000.0):
        tone = (0.5 * np.sin(2 * np.pi * hz * np.arange(16000) / 16000)).astype(np.float32)
        place = int(filterbank(tone).mean(0).argmax())
        assert abs(kaldi_centres()[place] - hz) < np.diff(kaldi_centres())[place]
        place = int(whisper_log_mel(tone).mean(1).argmax())
        assert abs(whisper_centres()[place] - hz) < np.diff(whisper_centres())[place] + 31
