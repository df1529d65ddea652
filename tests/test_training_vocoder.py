"""Training of flow and HiFT: through the product's modules, and into files that the product loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio import device
from stepaudio.loading import load_encoder
from stepaudio.tokens import PAD_LINGUISTIC, interleave, rows
from stepaudio.types import Waveform
from stepaudio.vocoder.vocoder import load_vocoder
from stepaudio.weights import WeightsFolder, read_card
from training import codes, ear, export, flow, hift, made, pitch
from training.adversary import Adversary, Refined, loss_of_made, own_loss
from training.codes import Spoken, read_spoken
from training.data import Example
from training.shards import Clip, ClipRecord, write_shard
from training.sizes import flow_config, hift_config
from training.texts import held_out
from training.whisper import decoder_of, encoder_of

from .test_training_ear import spelling  # noqa: F401 - a fixture
from .test_training_whisper import whisper


def spoken(length: int, speaker: str = "s", seed: int = 0) -> Spoken:
    rng = np.random.default_rng(seed)
    rows = np.stack((rng.integers(0, 1024, length), rng.integers(1025, 3025, length)), 1).astype(np.int16)
    mel = rng.normal(-6, 2, (2 * length, 81)).astype(np.float16)
    record = ClipRecord("n", speaker, 0, 1, 16000, "en", "", "", ())
    return Spoken(record, rows, rng.standard_normal(192).astype(np.float32), 0, mel)


def save_pitch(work: Path) -> None:
    (work / "pitch").mkdir()
    torch.save({"model": pitch.new_predictor(hift_config()).state_dict()}, work / "pitch" / "checkpoint.pt")


def test_the_velocity_is_the_products_where_all_clips_have_one_time() -> None:
    torch.manual_seed(0)
    estimator = flow.Trainee(flow_config()).flow.decoder.estimator.eval()
    for part in (*estimator.blocks, estimator.final_layer):
        torch.nn.init.normal_(part.adaLN_modulation[1].weight, std=0.1)
    mixed, conditions = torch.randn(2, 30, 80), torch.randn(2, 30, 240)
    with torch.no_grad():
        modulation = estimator.modulation(torch.tensor([0.3]))
        expected = estimator(mixed, estimator.project(conditions), modulation, 0)
        found = flow.velocity(estimator, mixed, conditions, torch.tensor([0.3, 0.3]))
        other = flow.velocity(estimator, mixed, conditions, torch.tensor([0.3, 0.9]))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other[0], expected[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(other[1], expected[1], atol=1e-2)


def test_crops_of_a_batch_have_one_length_and_whole_groups() -> None:
    clips = [spoken(70, seed=1), spoken(64, seed=2)]
    rows, mel = flow.crops(clips, torch.Generator().manual_seed(5))
    assert rows.shape == (2, 60, 2)
    assert mel.shape == (2, 120, 80)
    for clip, row, frames in zip(clips, rows, mel, strict=True):
        starts = [n for n in range(len(clip.rows) - 59) if (clip.rows[n : n + 60] == row.numpy()).all()]
        assert len(starts) == 1
        assert starts[0] % 3 == 0
        np.testing.assert_array_equal(clip.mel[2 * starts[0] :][:120, :80].astype(np.float32), frames)


@pytest.mark.parametrize("expected_only", [True, False])
def test_the_loss_reaches_every_weight_of_the_flow(expected_only: bool) -> None:
    torch.manual_seed(0)
    model = flow.Trainee(flow_config())
    for part in (*model.flow.decoder.estimator.blocks, model.flow.decoder.estimator.final_layer):
        torch.nn.init.normal_(part.adaLN_modulation[1].weight, std=0.1)
    batch = [spoken(40, seed=n) for n in range(4)]
    generator = torch.Generator().manual_seed(1)
    loss = flow.loss_of(model, batch, flow.Voices(batch), generator, expected_only=expected_only)
    loss.backward()
    assert float(loss) < 40  # begins near the mels' mean
    assert [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()] == []


def test_the_expected_mel_does_not_depend_on_the_noise_that_it_is_made_of() -> None:
    """What the first round asks for: a step from any noise to one and the same mel."""
    torch.manual_seed(0)
    model = flow.Trainee(flow_config())
    batch = [spoken(40, seed=n) for n in range(2)]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    losses = []
    for step in range(30):
        generator = torch.Generator().manual_seed(step)
        loss = flow.loss_of(model, batch, flow.Voices(batch), generator, expected_only=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


def test_only_whole_english_clips_are_to_be_understood(spelling: ear.Spelling) -> None:  # noqa: F811
    long, short, other, mute = spoken(60, seed=1), spoken(48, seed=2), spoken(48, seed=3), spoken(48, seed=4)
    for clip, lang, text in ((long, "en", "LONG"), (short, "en", "SHORT"), (other, "zh", "OTHER"), (mute, "en", "")):
        object.__setattr__(clip, "record", replace(clip.record, lang=lang, text=text))
    listener = ear.Ear(ear.Bridge(), encoder_of(whisper()), decoder_of(whisper()))
    batch = [long, short, other, mute]
    hearing = flow.Hearing(listener, spelling, batch)
    assert listener.known is not None
    assert len(listener.known) == len(set(" Long Short Other")) + 3  # and the tokens around a text
    told: list[list[int]] = []
    unlike = listener.unlike

    def counted(made: torch.Tensor, true: torch.Tensor, words: ear.Words | None = None) -> torch.Tensor:
        assert words is not None
        told.append(words.followed.sum(1).tolist())
        return unlike(made, true, words)

    listener.unlike = counted  # type: ignore[method-assign]
    model = flow.Trainee(flow_config())
    generator = torch.Generator().manual_seed(0)
    loss = flow.loss_of(model, batch, flow.Voices(batch), generator, expected_only=True, hearing=hearing)
    loss.backward()
    assert told == [[6, 7, 0, 0]]  # a space, letters and the end: 12 rows more may be lost, and were
    assert model.flow.decoder.estimator.final_layer.linear.weight.grad is not None
    longer = [spoken(61, seed=5), short]
    object.__setattr__(longer[0], "record", long.record)
    flow.loss_of(model, longer, flow.Voices(longer), generator, expected_only=True, hearing=hearing)
    assert told[-1] == [0, 7]


def test_a_prompt_is_the_beginning_at_times_squeezed_by_silence_around_it() -> None:
    mel = torch.arange(100.0)[:, None].expand(-1, 80) + 1
    prompts = [flow.prompt_of(mel, 40, torch.Generator().manual_seed(n)) for n in range(30)]
    assert all(one.shape == (100, 80) and not one[40:].any() and one[:40].all() for one in prompts)
    exact = [torch.equal(one[:40], mel[:40]) for one in prompts]
    assert 5 < sum(exact) < 25
    squeezed = next(one for one, same in zip(prompts, exact, strict=True) if not same)
    assert squeezed[:40, 0].unique().numel() < 40
    assert not flow.prompt_of(mel, 0, torch.Generator().manual_seed(1)).any()


def test_only_a_clip_of_the_same_voice_lends_its_vector() -> None:
    clips = [spoken(40, "a", 1), spoken(40, "a", 2), spoken(40, "b", 3)]
    voices = flow.Voices(clips)
    generator = torch.Generator().manual_seed(0)
    drawn = {voices.draw(clips[0], generator).tobytes() for _ in range(50)}
    assert drawn == {clips[0].voice.tobytes(), clips[1].voice.tobytes()}


def test_codes_and_rows_of_a_clip_meet_and_held_out_speakers_are_not_trained_on(tmp_path: Path) -> None:
    own = sorted(held_out().speakers)[0]
    clips = [Clip(name, speaker, np.zeros(16000, np.float32), 16000) for name, speaker in (("a", "s"), ("b", own))]
    write_shard(tmp_path / "recordings", 0, clips)
    folder = tmp_path / "acoustic" / "recordings"
    folder.mkdir(parents=True)
    np.save(folder / "shard-00000.npy", np.ones((180, 81), np.float16))
    np.save(folder / "shard-00000.places.npy", np.array([[90, 0], [90, 0]]))

    class Encoders:
        def encode(self, samples: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray, int]:
            assert (len(samples), rate) == (16000, 16000)
            return np.full((48, 2), 7, np.int16), np.ones(192, np.float32), -800

    codes.encode_shard(Encoders(), tmp_path, "recordings", 0)  # type: ignore[arg-type]
    assert [(len(one.rows), one.offset) for one in codes.read_codes(tmp_path, "recordings")] == [(48, -800)] * 2
    first, second = read_spoken(tmp_path, "recordings")
    assert (first.record.name, second.record.name) == ("a", "b")
    assert first.rows.shape == (45, 2)  # the mel has 90 frames
    assert first.mel.shape == (90, 81)
    assert {one.record.speaker for one in flow.training_clips(tmp_path)} == {"s"}


def test_what_the_flow_makes_of_a_clip_teaches_the_sound_generator_beside_the_true_mel(tmp_path: Path) -> None:
    clips = [Clip(name, "s", np.zeros(32000, np.float32), 16000) for name in ("a", "b")]
    write_shard(tmp_path / "recordings", 0, clips)
    (tmp_path / "acoustic" / "recordings").mkdir(parents=True)
    np.save(tmp_path / "acoustic" / "recordings" / "shard-00000.npy", np.full((180, 81), 9, np.float16))
    np.save(tmp_path / "acoustic" / "recordings" / "shard-00000.places.npy", np.array([[90, -3], [90, 0]]))
    torch.manual_seed(0)
    trained = flow.Trainee(flow_config()).flow.eval()
    clip = spoken(39, seed=3)
    made.make_shard(trained, tmp_path, "recordings", 0, {"a": clip}, steps=2)
    assert [len(one.example.bank) for one in hift.pieces(tmp_path, None)] == [90, 90, *[78] * hift.MADE_TIMES]
    rows = hift.pieces(tmp_path, None)[-1].example.bank
    np.testing.assert_array_equal(rows[:, 80], clip.mel[:, 80])  # the pitch is the true one
    assert np.isfinite(rows).all()
    assert np.abs(rows[:, :80] - clip.mel[:, :80]).mean() > 0.5


def test_the_codes_of_a_clip_are_those_that_the_product_encodes() -> None:
    weights = Path("models/mini")
    encoders = codes.Encoders(weights)
    rng = np.random.default_rng(1)
    clip = np.concatenate((np.zeros(8000), 0.3 * rng.standard_normal(24000), np.zeros(4000))).astype(np.float32)
    found, voice, offset = encoders.encode(clip, 16000)
    expected = load_encoder(WeightsFolder(weights, read_card(weights), "mini"), device.choose("cpu")).encode(
        Waveform(clip, 16000)
    )
    np.testing.assert_array_equal(
        found, rows(interleave(expected.encoding.linguistic, expected.encoding.semantic).numbers)
    )
    np.testing.assert_allclose(voice, expected.encoding.speaker, atol=1e-5)
    assert offset == pytest.approx(8000 - 800, abs=300)


def test_the_spectral_loss_hears_spectra_and_not_phases() -> None:
    t = torch.arange(15360) / 24000
    tone = 0.3 * torch.sin(2 * torch.pi * 440 * t)[None]
    shifted = 0.3 * torch.cos(2 * torch.pi * 440 * t)[None]
    other = 0.3 * torch.sin(2 * torch.pi * 660 * t)[None]
    wide = torch.tensor([True])
    assert float(hift.spectral_loss(tone, tone, wide)) < 1e-6
    assert float(hift.spectral_loss(shifted, tone, wide)) < 0.3 * float(hift.spectral_loss(other, tone, wide))


def test_above_8_khz_a_recording_of_16_khz_teaches_nothing() -> None:
    torch.manual_seed(0)
    noise = 0.1 * torch.randn(1, 15360)
    high = 0.1 * torch.sin(2 * torch.pi * 10000 * torch.arange(15360) / 24000)[None]
    narrow, wide = (float(hift.spectral_loss(noise + high, noise, torch.tensor([one]))) for one in (False, True))
    assert narrow < 0.2 * wide


def test_the_loss_reaches_every_weight_of_hift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    torch.manual_seed(0)
    model = hift.Generator()
    mel, pitch = torch.randn(2, 80, hift.CROP) - 6, torch.full((2, hift.CROP), 150.0)
    made = model(mel, pitch, torch.randn(2, 480 * hift.CROP, 1))
    assert made.shape == (2, 480 * hift.CROP)
    true = 0.1 * torch.randn(made.shape)
    hift.spectral_loss(made, true, torch.tensor([True, True])).backward()
    untaught = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.any()]
    assert [name for name in untaught if not name.startswith("hift.f0_predictor.")] == []


def test_an_ear_listens_to_sound_whose_pitch_hift_told_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    torch.manual_seed(0)
    listener = ear.Ear(ear.Bridge(), encoder_of(whisper()), decoder_of(whisper()))
    model = Refined(hift.Generator(), Adversary(), 1e-4)
    frames = hift.HEARD_CROP
    batch = hift.Crops(
        torch.randn(2, 80, frames) - 6,
        torch.full((2, frames), torch.nan),  # is not looked at
        0.1 * torch.randn(2, 480 * frames),
        torch.tensor([True, False]),
    )
    heard: list[int] = []
    unlike = listener.unlike_sounds

    def listened(made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        heard.append(made.shape[1])
        return unlike(made, true)

    monkeypatch.setattr(listener, "unlike_sounds", listened)
    before = [one.detach().clone() for one in model.adversary.parameters()]
    hift.refining_loss(model, batch, listener).backward()
    assert heard == [320 * frames]  # all of it, at 16 kHz
    untaught = [name for name, one in model.generator.named_parameters() if one.grad is None or not one.grad.any()]
    assert [name for name in untaught if not name.startswith("hift.f0_predictor.")] == []
    assert any(not torch.equal(one, old) for one, old in zip(model.adversary.parameters(), before, strict=True))


def test_the_pitch_is_learned_where_there_is_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    frames = np.zeros((400, 81), np.float16)
    frames[:, :80], frames[:200, :80] = -8, -3  # loud and voiced, then silent
    frames[:200, 80] = 180
    record = ClipRecord("n", "s", 0, 1, 16000, "en", "", "", ())
    model, example = pitch.new_predictor(hift_config()), Example(record, frames, 0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(120):
        loss = pitch.loss_of(model, [example] * 8, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    told = model(torch.from_numpy(frames[:, :80].astype(np.float32)).T[None])[0].detach()
    assert told[10:190].mean() == pytest.approx(180, abs=15)
    assert float(told[210:].mean()) < 10


def test_the_adversary_learns_to_tell_made_from_real_and_teaches_the_difference() -> None:
    torch.manual_seed(0)
    t = torch.arange(12000) / 24000
    true = 0.3 * torch.sin(2 * torch.pi * 300 * t)[None] + 0.01 * torch.randn(2, 12000)
    made = (0.1 * torch.randn(2, 12000)).requires_grad_()
    adversary, known = Adversary(), torch.tensor([0.6, 1.0])
    own = torch.optim.AdamW(adversary.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        own.zero_grad()
        loss = own_loss(adversary, made, true, known)
        loss.backward()
        own.step()
        losses.append(float(loss))
    assert made.grad is None
    assert losses[-1] < 0.5 * losses[0]
    to_learn = loss_of_made(adversary, made, true, known)
    to_learn.backward()
    assert made.grad is not None
    assert float(to_learn) > 1.5 * float(loss_of_made(adversary, true + 0.001 * torch.randn(2, 12000), true, known))


def test_the_adversary_hears_nothing_above_what_is_known_of_a_clip() -> None:
    torch.manual_seed(0)
    adversary, t = Adversary(), torch.arange(12000) / 24000
    low = 0.1 * torch.randn(1, 12000)
    high = low + 3 * torch.hann_window(12000) * torch.sin(2 * torch.pi * 10000 * t)
    narrow, wide = (
        [
            float((one - other).abs().max())
            for (one, _), (other, _) in zip(adversary(low, k), adversary(high, k), strict=True)
        ]
        for k in (torch.tensor([0.6]), torch.tensor([1.0]))
    )
    assert max(narrow) < 0.2 * max(wide)


def test_sound_is_laid_together_as_the_product_does_it() -> None:
    torch.manual_seed(0)
    model = hift.HiFT(hift_config())
    spectrum = torch.randn(2, model.config.n_fft + 2, 101)
    torch.testing.assert_close(hift.samples_of(model, spectrum), model.samples(spectrum), atol=1e-5, rtol=1e-5)


def test_a_step_of_refining_teaches_the_generator_and_leaves_the_adversary_to_its_own_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    rng = np.random.default_rng(0)
    write_shard(
        tmp_path / "recordings", 0, [Clip("a", "s", 0.1 * rng.standard_normal(32000).astype(np.float32), 16000)]
    )
    (tmp_path / "acoustic" / "recordings").mkdir(parents=True)
    rows = np.column_stack((rng.normal(-6, 1, (90, 80)), np.full(90, 150.0)))
    np.save(tmp_path / "acoustic" / "recordings" / "shard-00000.npy", rows.astype(np.float16))
    np.save(tmp_path / "acoustic" / "recordings" / "shard-00000.places.npy", np.array([[90, 0]]))
    first = Path("models/mini") / export.EDITX / export.COSYVOICE
    hift.refine(tmp_path, None, 1, hift.REFINING_RATE, first, hift.Course(batch=2))
    state = torch.load(tmp_path / "hift" / "refined.pt", weights_only=True)
    begun = hift.Generator(first)
    taught = [name for name, _ in begun.named_parameters() if "f0_predictor" not in name]
    assert len(state["optimizers"][0]["state"]) == len(taught)
    same = [name for name, one in begun.named_parameters() if torch.equal(one, state["model"][f"generator.{name}"])]
    assert same == [name for name, _ in begun.named_parameters() if "f0_predictor" in name]
    torch.manual_seed(0)
    untaught = Adversary().state_dict()
    assert all(not torch.equal(one, state["model"][f"adversary.{name}"]) for name, one in untaught.items())


def test_a_refined_generator_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    torch.manual_seed(0)
    first, second = hift.Generator(), Refined(hift.Generator(), Adversary(), 1e-4)
    (tmp_path / "hift").mkdir()
    torch.save({"model": first.state_dict()}, tmp_path / "hift" / "checkpoint.pt")
    own = first.hift.f0_predictor.classifier.weight.detach()
    torch.testing.assert_close(hift.load(tmp_path).f0_predictor.classifier.weight, own)  # none was trained by itself
    save_pitch(tmp_path)
    assert not torch.equal(hift.load(tmp_path).f0_predictor.classifier.weight, own)
    torch.testing.assert_close(hift.load(tmp_path).conv_post.weight, first.hift.conv_post.weight.detach())
    torch.save({"model": second.state_dict()}, tmp_path / "hift" / "refined.pt")
    found = hift.load(tmp_path).conv_post.weight
    torch.testing.assert_close(found, second.generator.hift.conv_post.weight.detach())


def test_a_flow_that_was_trained_hears_no_linguistic_code(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save({"model": flow.Trainee(flow_config()).state_dict()}, tmp_path / "checkpoint.pt")
    loaded = flow.load(tmp_path)
    rows = torch.stack((torch.randint(1024, (12,)), torch.randint(1030, 3000, (12,))), 1)[None]
    other = rows.clone()
    other[:, :, 0] = PAD_LINGUISTIC
    with torch.inference_mode():
        one, two, three = (
            loaded.conditions(codes, torch.zeros(1, 24, 80), torch.ones(1, 192))
            for codes in (rows, other, rows.flip(1))
        )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_the_exported_vocoder_is_loaded_by_the_product_and_speaks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    trainee, generator = flow.Trainee(flow_config()), hift.Generator()
    for name, model in (("flow", trainee), ("hift", generator)):
        (tmp_path / name).mkdir()
        torch.save({"model": model.state_dict()}, tmp_path / name / "checkpoint.pt")
    save_pitch(tmp_path)
    export.export_flow(tmp_path, tmp_path / "mini")
    export.export_hift(tmp_path, tmp_path / "mini")
    vocoder = load_vocoder(tmp_path / "mini" / export.EDITX / export.COSYVOICE, torch.device("cpu"))
    rng = np.random.default_rng(0)
    tokens = interleave(rng.integers(0, 1024, 8), rng.integers(0, 2000, 12))
    with torch.inference_mode():
        mel = vocoder.flow(tokens, tokens, np.zeros((24, 80), np.float32), np.ones(192, np.float32), seed=1, steps=2)
        sound = vocoder.sound(mel, seed=1)
    assert len(sound.samples) == 24 * 480
    again = hift.Generator(tmp_path / "mini" / export.EDITX / export.COSYVOICE).hift  # a training may begin with it
    torch.testing.assert_close(again.conv_post.weight, generator.hift.conv_post.weight, atol=2e-3, rtol=2e-3)
    pitch.new_predictor(hift_config()).load_state_dict(
        pitch.exported(tmp_path / "mini" / export.EDITX / export.COSYVOICE)
    )
    named = hift.load(tmp_path).state_dict()
    torch.testing.assert_close(named["conv_post.weight"], generator.hift.conv_post.weight.detach())
    loaded = vocoder._hift.state_dict()
    for name in ("conv_post.weight", "ups.0.weight", "m_source.l_linear.weight"):
        torch.testing.assert_close(loaded[name], named[name], atol=2e-3, rtol=2e-3)
