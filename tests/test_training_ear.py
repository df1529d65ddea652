"""The ear that training listens with: it tells mels apart, and its bridge learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stepaudio.features import whisper_log_power
from training import ear
from training.acoustic import MELS
from training.whisper import decoder_of, encoder_of

from .test_training_whisper import TOKENS, whisper


@pytest.fixture(scope="module")
def listener() -> ear.Ear:
    torch.manual_seed(0)
    return ear.Ear(ear.Bridge(), encoder_of(whisper()), decoder_of(whisper()))


def mel(seed: int = 0, frames: int = 40) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(-6, 2, (2, frames, MELS)).astype(np.float32))


def test_a_mel_is_heard_like_itself_and_unlike_others(listener: ear.Ear) -> None:
    one, other = mel(0), mel(1)
    near = one + 0.05 * other
    assert float(listener.unlike(one, one)) == 0
    assert 0 < float(listener.unlike(near, one)) < float(listener.unlike(other, one))


def test_the_way_to_the_true_mel_is_shown(listener: ear.Ear) -> None:
    true, made = mel(0), mel(1).requires_grad_()
    loss = listener.unlike(made, true)
    loss.backward()
    assert made.grad is not None
    assert all(one.grad is None for one in listener.parameters())
    with torch.no_grad():
        nearer = made - 0.5 * made.grad / made.grad.norm()
    assert float(listener.unlike(nearer, true)) < float(loss.detach())


@pytest.fixture(scope="module")
def spelling() -> ear.Spelling:
    """One token a letter."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    letters = {letter: number for number, letter in enumerate(" abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.")}
    special = [ear.BEFORE, ear.UNTIMED, ear.AFTER, "<|other|>"]
    vocabulary = letters | {token: len(letters) + number for number, token in enumerate(special)}
    assert len(vocabulary) < TOKENS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|other|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return ear.Spelling(tokenizer)


def test_texts_are_spelled_and_what_has_none_asks_for_nothing(spelling: ear.Spelling) -> None:
    words = spelling.words(["TO BE", "", "Be."])
    # " To be" and " Be.": a space and letters after two tokens, and one after them; what is told lies one before.
    assert words.tokens.shape == words.followed.shape == (3, 2 + 6)
    assert words.followed.sum(1).tolist() == [7, 0, 5]
    assert words.tokens[0, 2:].tolist() == [0, 46, 15, 0, 2, 5]
    assert words.tokens[2, 2:6].tolist() == [0, 28, 5, 53]
    assert words.followed[2].tolist() == [False] + 5 * [True] + 2 * [False]
    assert not spelling.words(["", ""]).followed.any()


def test_words_are_understood_of_the_true_mel_and_less_of_others(listener: ear.Ear, spelling: ear.Spelling) -> None:
    true, made = mel(0), mel(1).requires_grad_()
    words = spelling.words(["To be", "or not"])
    assert float(listener.unlike(true, true, words)) == pytest.approx(0, abs=1e-6)
    loss = listener.unlike(made, true, words)
    assert float(loss.detach()) > float(listener.unlike(made, true).detach())
    heard, other = listener.heard(made)[-1], listener.heard(true)[-1]
    apart = listener.misunderstood(heard, other, words)
    (way,) = torch.autograd.grad(apart, made)
    with torch.no_grad():
        nearer = listener.heard(made - 3 * way / way.norm())[-1]
    assert float(listener.misunderstood(nearer, other, words)) < float(apart.detach())
    silent = spelling.words(["", ""])
    assert float(listener.unlike(made, true, silent).detach()) == float(listener.unlike(made, true).detach())


def test_the_bridge_learns_whispers_mel_from_the_vocoders() -> None:
    rng = np.random.default_rng(5)
    t = np.arange(48000) / 16000
    hum = sum(np.sin(2 * np.pi * 130 * k * t) / k for k in range(1, 20)) * (1 + np.sin(2 * np.pi * 3 * t))
    pair = ear.pair_of((0.1 * hum + 0.01 * rng.standard_normal(len(t))).astype(np.float32), 16000)
    assert pair.power.shape == (ear.FINER * len(pair.mel), MELS)
    assert len(pair.mel) >= ear.CUT
    torch.manual_seed(0)
    bridge = ear.Bridge()
    optimizer = torch.optim.AdamW(bridge.parameters(), 2e-3)
    losses = []
    for step in range(30):
        loss = ear.loss_of(bridge, [pair] * 4, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def test_an_ear_without_its_bridge_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"training\.ear makes it"):
        ear.load(tmp_path)


def test_sound_is_heard_as_the_product_computes_whispers_mel() -> None:
    samples = 0.1 * torch.from_numpy(np.random.default_rng(2).standard_normal((2, 8000)).astype(np.float32))
    power = ear.power_of(samples)
    for one, sound in zip(power, samples, strict=True):
        np.testing.assert_allclose(one.T, whisper_log_power(sound.numpy(), MELS), atol=1e-4)


def test_sounds_are_told_apart_and_the_way_to_the_true_one_is_shown(listener: ear.Ear) -> None:
    true, made = (0.1 * torch.randn(2, 8000, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    made = made * torch.linspace(0, 3, 8000)
    assert float(listener.unlike_sounds(true, true)) == 0
    made.requires_grad_()
    loss = listener.unlike_sounds(made, true)
    loss.backward()
    assert made.grad is not None
    with torch.no_grad():
        nearer = made - 0.5 * made.grad / made.grad.norm()
    assert float(listener.unlike_sounds(nearer, true)) < float(loss.detach())
