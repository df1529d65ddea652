"""An ear that is no judge's: what Whisper tiny.en hears of a mel. ``python -m training.ear --work W`` fits it.

A mel that is off by little may say another word, and one that is off by much the same: distance alone does not tell
encoders what must survive a few hundred bits a second. A recogniser does, by what its encoder makes of the mel that is
given back and of the true one (perceptual loss; Johnson et al., arXiv 1603.08155). Whisper tiny.en is another network
than the judge, Whisper base, which nothing is ever trained on.

It hears its own log-mel, of 16 kHz and 100 frames a second, so a bridge of a few convolutions, fitted here, tells that
from the vocoder's.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn

from stepaudio import audio, features
from stepaudio.types import Waveform
from training.acoustic import MEL, MEL_MEAN, MEL_SPREAD, MELS, SOUND_RATE, sound_of
from training.captured import Batch
from training.command import DEVICES, begin
from training.data import RATE
from training.shards import read_records, read_samples
from training.texts import held_out
from training.trainer import Plan, best_weights, home, run
from training.whisper import Decoder, Encoder, tiny_en, tiny_en_decoder

SET, EVERY = "recordings", 8
"""Of the recordings every so manieth is enough to learn the bridge from."""

FINER = 2
"""Frames of Whisper's mel in one of the vocoder's."""

WIDTH = 256
CUT, BATCH_FRAMES, STEPS, LEARNING_RATE = 128, 4096, 3000, 2e-3
COMPARED = (2, 4)
"""After which layers of the ear two mels are compared."""

EAR_SHARE = 5.0
"""Of how otherwise a mel is heard, beside its distance, in the losses of those that listen."""

WORDS_SHARE = 0.25
"""Of how otherwise words are understood, beside how otherwise they are heard."""

BEFORE, AFTER = "<|startoftranscript|>", "<|endoftext|>"
UNTIMED = "<|notimestamps|>"
"""Tokens that stand around a text."""

LEAST_VARIANCE = 1e-3
CHECKPOINT = "checkpoint.pt"
SEED = 12


class Bridge(nn.Module):
    """From the vocoder's mel to Whisper's power in log10: each band by itself, and what its surroundings add."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((MELS,), 2 / math.log(10)))  # magnitude to power, ln to log10
        self.shift = nn.Parameter(torch.zeros(MELS))
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, size, padding=size // 2)
            for before, after, size in ((MELS, WIDTH, 5), (WIDTH, WIDTH, 3), (WIDTH, FINER * MELS, 3))
        )

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """Return (B, 2 T, 80) of a mel (B, T, 80)."""
        first, second, last = self.layers
        x = F.relu(first((mel - MEL_MEAN).transpose(1, 2) / MEL_SPREAD))
        added = last(F.relu(second(x))).transpose(1, 2).unflatten(2, (FINER, MELS)).flatten(1, 2)
        out: torch.Tensor = (mel * self.scale + self.shift).repeat_interleave(FINER, 1) + added
        return out


@dataclass(frozen=True, eq=False)
class Words(Batch):
    """The texts of a batch. tokens: int64 (B, N).   followed: bool (B, N), where what comes next is to be told."""

    tokens: torch.Tensor
    followed: torch.Tensor


class Spelling:
    """Texts as tokens of the ear's decoder."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def words(self, texts: list[str]) -> Words:
        """Return some texts; of an empty one nothing is to be told."""
        before, untimed, after = (self._tokenizer.token_to_id(one) for one in (BEFORE, UNTIMED, AFTER))
        spelled = [self._tokenizer.encode(f" {_written(one)}", add_special_tokens=False).ids for one in texts]
        tokens = torch.full((len(texts), 2 + max(map(len, spelled))), after)
        tokens[:, 0], tokens[:, 1] = before, untimed
        followed = torch.zeros(tokens.shape, dtype=torch.bool)
        for number, (text, ids) in enumerate(zip(texts, spelled, strict=True)):
            tokens[number, 2 : 2 + len(ids)] = torch.tensor(ids)
            followed[number, 1 : 2 + len(ids)] = bool(text)
        return Words(tokens, followed)


def _written(text: str) -> str:
    """Return a transcript in capitals as a sentence is written."""
    return text.lower().capitalize() if text.isupper() else text


class Ear(nn.Module):
    """Tells how differently two mels are heard and understood. Nothing in it learns; it computes in half precision."""

    def __init__(self, bridge: Bridge, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.bridge, self.encoder, self.decoder = bridge.bfloat16(), encoder.bfloat16(), decoder.bfloat16()
        self.known: torch.Tensor | None = None
        """The tokens (K,) that may come next, where they are few."""

        self.requires_grad_(False)

    def heard(self, mel: torch.Tensor) -> list[torch.Tensor]:
        """Return what the ear makes of the vocoder's mel (B, T, 80): (B, T, width) for each layer of COMPARED."""
        return self._heard(self.bridge(mel.bfloat16()).float())

    def heard_of_sound(self, samples: torch.Tensor) -> list[torch.Tensor]:
        """Return what the ear makes of samples (B, N) at 16 kHz: (B, N / 320, width) for each layer of COMPARED."""
        return self._heard(power_of(samples))

    def _heard(self, power: torch.Tensor) -> list[torch.Tensor]:
        """Return what is heard of Whisper's power in log10 (B, T, 80): (B, T / 2, width) for each layer of COMPARED."""
        loudest = power.detach().amax((1, 2), keepdim=True)
        whisper = (torch.maximum(power, loudest - features.WHISPER_RANGE) + 4) / 4  # as features.whisper_log_mel does
        seen = self.encoder(whisper.transpose(1, 2).bfloat16())
        return [seen[number - 1].float() for number in COMPARED]

    def unlike(self, made: torch.Tensor, true: torch.Tensor, words: Words | None = None) -> torch.Tensor:
        """Return how differently mels (B, T, 80) are heard: squared distance over variance, of about 0 to 2.

        With their words it also counts how differently those are understood (see ``misunderstood``).
        """
        with torch.no_grad():
            theirs = self.heard(true)
        ours = self.heard(made)
        distance = apart(ours, theirs)
        if words is None or not words.followed.any():
            return distance
        return distance + WORDS_SHARE * self.misunderstood(ours[-1], theirs[-1], words)

    def unlike_sounds(self, made: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
        """Return how differently samples (B, N) at 16 kHz are heard, as ``unlike`` does."""
        with torch.no_grad():
            theirs = self.heard_of_sound(true)
        return apart(self.heard_of_sound(made), theirs)

    def misunderstood(self, ours: torch.Tensor, theirs: torch.Tensor, words: Words) -> torch.Tensor:
        """Return how much less of the next token is known by what was heard of one mel than by the other.

        It is the Kullback-Leibler divergence in nats a token, where the tokens before are the true ones. What the ear
        itself mishears of the true mel it need not understand of the other.
        """
        with torch.no_grad():
            known = self.expected(theirs, words)
        found = self.expected(ours, words)
        return F.kl_div(found, known, reduction="batchmean", log_target=True)

    def expected(self, heard: torch.Tensor, words: Words) -> torch.Tensor:
        """Return the log-probability of every next token (K, tokens), by what was heard (B, T, width)."""
        states = self.decoder(words.tokens, heard.bfloat16())[words.followed]
        return self.decoder.logits(states, self.known).float().log_softmax(-1)


def apart(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> torch.Tensor:
    """Return the mean over layers of squared distance over variance, of (B, T, width) each."""
    distances = [
        ((one - other).square().mean((0, 1)) / (other.var((0, 1)) + LEAST_VARIANCE)).mean()
        for one, other in zip(ours, theirs, strict=True)
    ]
    return torch.stack(distances).mean()


def power_of(samples: torch.Tensor) -> torch.Tensor:
    """Return what features.whisper_log_power does, but (B, N // 160, 80) and with gradients, of samples (B, N)."""
    size, hop = features.WHISPER_FFT, features.WHISPER_HOP
    window = torch.hann_window(size, device=samples.device)
    spectrum = torch.view_as_real(torch.stft(samples, size, hop, window=window, return_complex=True))
    power = spectrum[:, :, : samples.shape[1] // hop].square().sum(-1)
    # The product may have made them in inference mode, of which gradients want a copy.
    filters = features.mel_filters(RATE, size, MELS, 0.0, RATE / 2).clone().to(samples.device)
    return (filters @ power).clamp(min=features.WHISPER_FLOOR).log10().transpose(1, 2)


@dataclass(frozen=True, eq=False)
class Pair:
    """A clip's mel, float32 (T, 80), and Whisper's power of it in log10, float32 (2 T, 80)."""

    mel: torch.Tensor
    power: torch.Tensor


def pair_of(samples: np.ndarray, rate: int) -> Pair:
    """Return both mels of a clip."""
    sound, _ = sound_of(samples, rate)
    mel = torch.from_numpy(features.log_mel(sound, MEL))
    at_16k = audio.resample(Waveform(sound, SOUND_RATE), RATE).samples
    power = torch.from_numpy(features.whisper_log_power(at_16k, MELS).T)
    count = min(len(mel), len(power) // FINER)
    return Pair(mel[:count], power[: FINER * count])


def read_pairs(work: Path) -> Iterator[Pair]:
    """Yield both mels of every EVERY-th recording that may be trained on and is long enough."""
    for number, record in itertools.islice(read_records(work / SET), 0, None, EVERY):
        if record.speaker not in held_out().speakers:
            pair = pair_of(read_samples(work / SET, number, record), record.rate)
            if len(pair.mel) >= CUT:
                yield pair


def loss_of(bridge: Bridge, batch: list[Pair], generator: torch.Generator) -> torch.Tensor:
    """Return how far the bridge's power is off in parts of some clips."""
    starts = [int(torch.randint(len(one.mel) - CUT + 1, (), generator=generator)) for one in batch]
    mel = torch.stack([one.mel[start : start + CUT] for one, start in zip(batch, starts, strict=True)])
    power = torch.stack(
        [one.power[FINER * start : FINER * (start + CUT)] for one, start in zip(batch, starts, strict=True)]
    )
    place = home(bridge)
    with torch.autocast(place.type, torch.bfloat16):
        found = bridge(mel.to(place))
    return F.l1_loss(found.float(), power.to(place))


def train(work: Path, steps: int, device: str) -> None:
    """Fit the bridge until ``steps`` steps are done, from the last checkpoint if there is one."""
    pairs = list(read_pairs(work))
    out = work / "ear"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    bridge = Bridge().to(device)
    plan = Plan(steps=steps, batch=BATCH_FRAMES, rate=LEARNING_RATE, seed=SEED)
    run(bridge, pairs, [CUT] * len(pairs), lambda batch, draw: loss_of(bridge, batch, draw), out / CHECKPOINT, plan)


def load(work: Path) -> Ear:
    """Return the ear whose bridge was fitted. Raises FileNotFoundError where it was not, and as pins does."""
    path = work / "ear" / CHECKPOINT
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: python -m training.ear makes it.")
    bridge = Bridge()
    bridge.load_state_dict(best_weights(path))
    return Ear(bridge, tiny_en(), tiny_en_decoder())


def main() -> None:
    """Fit the bridge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    options = parser.parse_args()
    begin(options.work, "ear", options.threads)
    train(options.work, options.steps, options.device)


if __name__ == "__main__":
    main()
