"""Train mini's sound generator: ``python -m training.hift {train,refine} --work W [--speech S]``.

The product's own HiFT learns to give the spectra of real sound back from its mel: the differences of spectra at
several resolutions (Yamamoto et al., Parallel WaveGAN, arXiv 1910.11480), the source driven by the true pitch; what
tells the pitch from the mel is trained by itself (training.pitch). Waveforms are never compared: the phase of the
source is free. Then (``refine``) an adversary joins, which teaches what distances cannot.
"""

from __future__ import annotations

import argparse
import csv
import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from stepaudio import audio, features
from stepaudio.tiny.vocoder import PLAIN
from stepaudio.types import Waveform
from stepaudio.vocoder.hift import HiFT
from stepaudio.vocoder.weights import HIFT_NAME, hift_names, read_state
from training.acoustic import HOP, SETS, SOUND_RATE
from training.adversary import Adversary, Refined, lowered
from training.captured import Batch
from training.command import DEVICES, begin
from training.data import RATE, Example, read_examples
from training.ear import Ear
from training.ear import load as load_ear
from training.pitch import has_pitch
from training.pitch import load as load_pitch
from training.shards import read_records, read_samples
from training.sizes import hift_config
from training.texts import held_out
from training.trainer import Plan, best_weights, home, run

log = logging.getLogger(__name__)

CROP, HEARD_CROP = 32, 128
"""Mel frames that are looked at in training (0.64 s), and that the ear listens to (2.56 s)."""

BATCH, STEPS, LEARNING_RATE = 8, 40_000, 1e-3
RESOLUTIONS = ((2048, 512, 128), (1024, 256, 80), (512, 128, 48), (256, 64, 24))
"""Sizes, hops and bands of the spectra that are compared."""

BAND_SHARE, BIN_SHARE = 3.0, 0.5

BAND = 7600.0
"""Hz up to which a recording of 16 kHz says anything; above it only wide-band clips teach."""

EVEN_BELOW = 2000.0
"""Hz above which a bin's weight falls with its frequency, as the ear's bands widen."""

FLOOR = 2e-3
"""Magnitude below which nothing is heard: about -80 dB of full scale."""

CHECKPOINT, REFINED = "checkpoint.pt", "refined.pt"
REFINING_STEPS, REFINING_RATE = 10_000, 4e-4
ADVERSARY_SHARE, SOUND_SHARE = 0.4, 2.0
"""Of the adversary's and of the ear's opinion, beside the distance of spectra."""

NARROW_SHARE = BAND / (SOUND_RATE / 2)
"""Of the spectrum, what lies below BAND."""

MADE_FOLDER, MADE_TIMES = "made", 4
"""Where training.made puts its rows, and how often a pass shows each."""

SEED = 4


@dataclass(frozen=True, eq=False)
class Piece:
    """A clip that sound is learned from: its rows, and where its samples are."""

    example: Example
    folder: Path
    number: int


class Generator(nn.Module):
    """HiFT, trained with the true pitch at its source."""

    def __init__(self, first: Path | None = None, *, compiled: bool = True) -> None:
        """Begin anew, or with the weights in the folder ``first`` (CosyVoice-300M-25Hz).

        compiled: whether the generator is compiled, which is good for a CPU.
        """
        super().__init__()
        self.hift = HiFT(hift_config())
        if first is not None:
            self.hift.load_state_dict(hift_names(read_state(first / HIFT_NAME)))
        normalise(self.hift)
        self.shape = torch.compile(self.hift.spectrum, dynamic=False) if compiled else self.hift.spectrum

    def forward(self, mel: torch.Tensor, pitch: torch.Tensor | None, noise: torch.Tensor) -> torch.Tensor:
        """Return samples (B, 480 T) of mel (B, 80, T) and true pitch in Hz (B, T); None: as HiFT tells it itself."""
        if pitch is None:
            with torch.no_grad():
                pitch = self.hift.f0_predictor(mel)
        source = self.hift.source_spectrum(self.hift.m_source(pitch, noise))
        with torch.autocast(mel.device.type, torch.bfloat16):
            spectrum = self.shape(mel, source)
        return samples_of(self.hift, spectrum.float())


def samples_of(hift: HiFT, spectrum: torch.Tensor) -> torch.Tensor:
    """Return what ``hift.samples`` returns, by sums that look at no value: torch.istft looks at its window's."""
    config = hift.config
    window = torch.hann_window(config.n_fft, device=spectrum.device)[None, :, None]
    count, frames = config.hop * (spectrum.shape[2] - 1), spectrum.shape[2]

    def laid(rows: torch.Tensor) -> torch.Tensor:
        whole = F.fold(rows, (1, count + config.n_fft), (1, config.n_fft), stride=(1, config.hop))
        return whole.flatten(1)[:, config.n_fft // 2 : -config.n_fft // 2]

    weight = laid(window.square().expand(1, -1, frames))
    sound = laid(torch.fft.irfft(hift.bins(spectrum), config.n_fft, dim=1) * window) / weight
    return sound.clamp(-config.limit, config.limit)


def normalise(hift: HiFT) -> None:
    """Let length and direction of the weights be learned apart, for those that hift.pt stores so."""
    for name, module in hift.named_modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d) and not PLAIN.fullmatch(f"{name}.weight"):
            nn.utils.parametrizations.weight_norm(module)


def spectral_loss(made: torch.Tensor, true: torch.Tensor, wide: torch.Tensor) -> torch.Tensor:
    """Return how far spectra lie apart, of bands as wide as the ear's and, at a lower weight, of single bins.

    Noise never agrees bin by bin, and what shall come as near to it as it can becomes too quiet. In bands it is even.

    made, true: samples (B, N). wide: bool (B,), whether what lies above BAND counts.
    """

    def counts(hertz: torch.Tensor) -> torch.Tensor:
        return (wide[:, None] | (hertz < BAND)[None]).float()

    total = made.new_zeros(())
    for size, hop, bands in RESOLUTIONS:
        with torch.no_grad():
            theirs = magnitudes(spectra(true, size, hop))
        ours = magnitudes(spectra(made, size, hop))
        filters, middles = ear_bands(size, bands, made.device)
        hertz = torch.arange(size // 2 + 1, device=made.device) * (SOUND_RATE / size)
        total = total + BAND_SHARE * distance(filters @ ours, filters @ theirs, counts(middles))
        total = total + BIN_SHARE * distance(ours, theirs, counts(hertz) / (1 + hertz / EVEN_BELOW))
    return total / len(RESOLUTIONS)


def distance(ours: torch.Tensor, theirs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Return the mean difference of the logarithms of magnitudes (B, F, T), with a weight (B, F)."""
    return ((weight / weight.mean())[..., None] * (ours.log() - theirs.log()).abs()).mean()


@functools.cache
def ear_bands(size: int, bands: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return filters (bands, size // 2 + 1) as wide as the ear's, and their middles in Hz (bands,)."""
    filters = features.mel_filters(SOUND_RATE, size, bands, 0.0, SOUND_RATE / 2)
    filters = filters / filters.sum(1, keepdim=True).clamp(min=1e-9)
    hertz = torch.arange(size // 2 + 1) * (SOUND_RATE / size)
    return filters.to(device), (filters @ hertz).to(device)


def spectra(samples: torch.Tensor, size: int, hop: int) -> torch.Tensor:
    """Return the spectra, (B, bins, frames, 2), of samples (B, N)."""
    return torch.view_as_real(
        torch.stft(samples, size, hop, window=torch.hann_window(size, device=samples.device), return_complex=True)
    )


def magnitudes(spectra: torch.Tensor) -> torch.Tensor:
    """Return the magnitudes of spectra (..., 2)."""
    return (spectra.square().sum(-1) + FLOOR**2).sqrt()


def pieces(work: Path, speech: Path | None, frames: int = CROP) -> list[Piece]:
    """Return the clips to learn sound from: no held-out speaker's, none that was an MP3 of a low rate.

    All are longer than ``frames``. Those of which the flow has made a mel (training.made) stand there with that, too,
    and more often.
    """
    spoiled = _from_mp3(speech / "index.tsv") if speech else set()
    found = []
    for name in SETS:
        if name == "heldout":
            continue
        places = {record.name: (number, record) for number, record in read_records(work / name)}
        true, made = (read_examples(work / name, work / folder / name) for folder in ("acoustic", MADE_FOLDER))
        for example in [*true, *(one for one in made for _ in range(MADE_TIMES))]:
            record = example.record
            if record.speaker in held_out().speakers or record.name in spoiled or len(example.bank) <= frames:
                continue
            number = places[record.name][0]
            found.append(Piece(example, work / name, number))
    return found


def _from_mp3(index: Path) -> set[str]:
    with index.open(encoding="utf-8", newline="") as file:
        return {Path(row["path"]).stem for row in csv.DictReader(file, delimiter="\t") if row["corpus"].endswith("mp3")}


def cropped(
    piece: Piece, generator: torch.Generator, frames: int = CROP
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return mel (80, frames), pitch (frames,) and samples (480 frames,) at a random place of a clip."""
    rows, record = piece.example.bank, piece.example.record
    start = int(torch.randint(len(rows) - frames, (), generator=generator))
    block = torch.from_numpy(np.asarray(rows[start : start + frames], np.float32))
    # A margin around the crop, so that resampling has no edge in it.
    first = piece.example.offset + start * HOP * RATE // SOUND_RATE
    first, count = first * record.rate // RATE, frames * HOP * record.rate // SOUND_RATE
    margin = 2 * record.rate // 100
    whole = read_samples(piece.folder, piece.number, record)
    scale = min(1.0, audio.PEAK_LIMIT / max(audio.peak(whole), 1e-9))
    part = np.zeros(count + 2 * margin, np.float32)
    begin, end = max(0, first - margin), max(0, min(len(whole), first + count + margin))
    part[begin - first + margin : end - first + margin] = whole[begin:end] * np.float32(scale)
    sound = audio.resample(Waveform(part, record.rate), SOUND_RATE).samples
    into = margin * SOUND_RATE // record.rate
    return block[:, :-1].T, block[:, -1], torch.from_numpy(sound[into : into + frames * HOP].copy())


@dataclass(frozen=True, eq=False)
class Crops(Batch):
    """A batch: mel (B, 80, T), true pitch (B, T) and samples (B, 480 T), and whether each clip is wide-band (B,)."""

    mel: torch.Tensor
    pitch: torch.Tensor
    true: torch.Tensor
    wide: torch.Tensor


def crops(batch: list[Piece], generator: torch.Generator, frames: int = CROP) -> Crops:
    """Return random crops of some clips."""
    parts = (cropped(one, generator, frames) for one in batch)
    mel, pitch, true = (torch.stack(part) for part in zip(*parts, strict=True))
    return Crops(mel, pitch, true, torch.tensor([one.example.record.rate > RATE for one in batch]))


def made_of(model: Generator, batch: Crops, *, own_pitch: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the samples (B, N) that the generator makes, and how far their spectra are from the true ones.

    own_pitch: whether the pitch is that which HiFT tells from the mel, as in the product.
    """
    noise = torch.randn((*batch.true.shape, 1), device=batch.mel.device)
    made = model(batch.mel, None if own_pitch else batch.pitch, noise)
    return made, spectral_loss(made, batch.true, batch.wide)


def refining_loss(model: Refined, batch: Crops, ear: Ear | None = None) -> torch.Tensor:
    """Let the adversary learn from a batch, then return what the generator is to learn from it.

    With an ear it also counts how otherwise the sound is heard: what is off in a spectrum may be off in a word.
    """
    made, loss = made_of(model.generator, batch, own_pitch=ear is not None)
    true = batch.true
    if ear is not None:
        loss = loss + SOUND_SHARE * ear.unlike_sounds(lowered(made), lowered(true))
        # The adversary takes by far the longest, and needs no more of a clip than it sees without an ear.
        start = HOP * int(torch.randint(batch.mel.shape[2] - CROP + 1, ()))
        made, true = (one[:, start : start + HOP * CROP] for one in (made, true))
    # Recordings of 16 kHz end at BAND, by which alone they would be known.
    known = torch.where(batch.wide, 1.0, NARROW_SHARE)
    return loss + ADVERSARY_SHARE * model.against(made, true, known)


@dataclass(frozen=True)
class Course:
    """Where and how to train: on which device, how many clips a step, with how many processes that prepare batches.

    captured: whether a step is recorded as a CUDA graph (training.captured).
    heard: whether an ear listens, and to longer crops.
    """

    device: str = "cpu"
    batch: int = BATCH
    workers: int = 0
    captured: bool = False
    heard: bool = False

    def plan(self, steps: int, rate: float) -> Plan:
        """Return the plan of a training."""
        return Plan(
            steps=steps,
            batch=self.batch,
            rate=rate,
            weight_decay=0.0,
            clip=5.0,
            average=0.999,
            seed=SEED,
            workers=self.workers,
            captured=self.captured,
        )


def train(work: Path, speech: Path | None, steps: int, first: Path | None, course: Course) -> None:
    """Train until ``steps`` steps are done, from the last checkpoint if there is one (else from ``first``)."""
    found = pieces(work, speech)
    log.info("%d clips, %.1f h", len(found), sum(len(one.example.bank) for one in found) / 180_000)
    out = work / "hift"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    model = Generator(first, compiled=course.device == "cpu").to(course.device)
    log.info("%.2f M parameters", sum(one.numel() for one in model.hift.parameters()) / 1e6)

    def loss(batch: Crops, generator: torch.Generator) -> torch.Tensor:
        return made_of(model, batch.to(home(model)))[1]

    run(model, found, [1] * len(found), loss, out / CHECKPOINT, course.plan(steps, LEARNING_RATE), crops)


def refine(work: Path, speech: Path | None, steps: int, rate: float, first: Path | None, course: Course) -> None:
    """Train on against the adversary, from the last checkpoint of that, else from ``first``, else from train's."""
    frames = HEARD_CROP if course.heard else CROP
    found, out = pieces(work, speech, frames), work / "hift"
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    inner = Generator(first, compiled=course.device == "cpu")
    if first is None and not (out / REFINED).is_file():
        inner.load_state_dict(best_weights(out / CHECKPOINT))
    model = Refined(inner.to(course.device), Adversary(), REFINING_RATE)
    ear = load_ear(work).to(course.device) if course.heard else None

    def loss(batch: Crops, generator: torch.Generator) -> torch.Tensor:
        return refining_loss(model, batch.to(home(model)), ear)

    prepared = functools.partial(crops, frames=frames)
    run(model, found, [1] * len(found), loss, out / REFINED, course.plan(steps, rate), prepared)


def load(work: Path) -> HiFT:
    """Return HiFT with the pitch predictor, of the last checkpoints (their running averages).

    The refined generator is preferred, if there is one.
    """
    out = work / "hift"
    path, prefix = (out / REFINED, "generator.hift.") if (out / REFINED).is_file() else (out / CHECKPOINT, "hift.")
    state = best_weights(path)
    hift = HiFT(hift_config())
    inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    hift.load_state_dict(hift_names(inner))
    if has_pitch(work):  # else it is that of the weights which were begun with
        hift.f0_predictor.load_state_dict(load_pitch(work))
    return hift.eval()


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("train", "refine"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--speech", type=Path, help="folder of the recordings, to leave out those that were MP3")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--first", type=Path, help="a folder CosyVoice-300M-25Hz to begin with")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--batch", type=int, default=BATCH, help="clips a step")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches")
    parser.add_argument("--heard", action="store_true", help="refine: let an ear (training.ear) listen")
    parser.add_argument("--rate", type=float, default=REFINING_RATE, help="refine: the greatest learning rate")
    parser.add_argument("--captured", action="store_true", help="record a step as a CUDA graph")
    options = parser.parse_args()
    begin(options.work, f"hift-{options.part}", options.threads)
    course = Course(options.device, options.batch, options.workers, options.captured, options.heard)
    if options.part == "train":
        train(options.work, options.speech, options.steps or STEPS, options.first, course)
    else:
        steps = options.steps or REFINING_STEPS
        refine(options.work, options.speech, steps, options.rate, options.first, course)


if __name__ == "__main__":
    main()
