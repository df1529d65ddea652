"""Judge mini: ``python -m training.evaluate {resynthesis,clone} --weights models/mini --speech S --out O``.

Recordings of held-out speakers go through the product's encoder and come back through the product's vocoder, with
another clip of the same voice as prompt; then with codes of one voice and prompt of another. The judges
(training.judges) say what is left of words, voice and quality. Everything that is random is seeded; figures are
medians over the seeds.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepaudio import device
from stepaudio.encoder.reference import ReferenceEncoder
from stepaudio.features import MelConfig, log_mel
from stepaudio.loading import load_encoder
from stepaudio.tokens import interleave
from stepaudio.types import EncodedReference, ReferenceEncoding, Waveform
from stepaudio.vocoder.vocoder import Vocoder, load_vocoder
from stepaudio.weights import WeightsFolder, read_card
from training import judges
from training.prepare import recording_clips
from training.shards import Clip
from training.texts import held_out, recordings

log = logging.getLogger(__name__)

SHORTEST, LONGEST = 3.0, 9.0
"""Seconds of the clips that are looked at."""

ENROLLED = 5
"""Recordings that tell the judges how a voice sounds; none of them is resynthesised or is a prompt."""

CROSSINGS = (1, 2)
"""The codes of voice n are spoken by the voices n + 1 and n + 2."""

LIMITS = {
    "word error rate": (0.12, "at most"),
    "nearest, resemblyzer": (0.9, "at least"),
    "nearest, d-vector": (0.9, "at least"),
    "quality": (2.8, "at least"),
    "crossed nearest, resemblyzer": (0.8, "at least"),
    "crossed nearest, d-vector": (0.8, "at least"),
    "vocoder RTF": (0.4, "at most"),
    "encoder share": (0.3, "at most"),
}
"""What mini must reach."""


@dataclass(frozen=True, eq=False)
class Voice:
    """A held-out speaker: a prompt, clips to resynthesise, and clips that tell the judges how the voice sounds."""

    name: str
    prompt: Clip
    targets: list[Clip]
    enrolled: list[Clip]


@dataclass
class Heard:
    """What the judges say of one sound. ``scores``: its cosine to every voice, by judge."""

    voice: str
    codes_of: str
    clip: str
    seed: int
    word_errors: int
    words: int
    transcript: str
    log_probability: float
    quality: float
    scores: dict[str, dict[str, float]] = field(default_factory=dict)

    def nearest(self, judge: str) -> str:
        """Return the voice that a judge takes this for."""
        return max(self.scores[judge], key=lambda name: self.scores[judge][name])


class Bench:
    """The product's encoder and vocoder of a weights folder, timed."""

    def __init__(self, weights: WeightsFolder) -> None:
        runtime = device.choose("cpu")
        self.encoder: ReferenceEncoder = load_encoder(weights, runtime)
        self.vocoder: Vocoder = load_vocoder(weights.cosyvoice, runtime.device)
        self.threads, self.steps = runtime.threads, weights.card.flow_steps
        self.encoded: dict[str, tuple[EncodedReference, float]] = {}
        self.spent: list[tuple[float, float]] = []

    def encode(self, clip: Clip) -> ReferenceEncoding:
        """Return a clip's encoding, made once."""
        if clip.name not in self.encoded:
            found = self.encoder.encode(Waveform(clip.samples, clip.rate))
            self.encoded[clip.name] = found, len(clip.samples) / clip.rate
        return self.encoded[clip.name][0].encoding

    def speak(self, codes_of: Clip, prompt: Clip, seed: int) -> np.ndarray:
        """Return the sound, 24 kHz, of a clip's codes in a prompt's voice."""
        said, voice = self.encode(codes_of), self.encode(prompt)
        begun = time.perf_counter()
        with torch.inference_mode():
            mel = self.vocoder.flow(
                interleave(said.linguistic, said.semantic),
                interleave(voice.linguistic, voice.semantic),
                voice.mel,
                voice.speaker,
                seed=seed,
                steps=self.steps,
            )
            sound = self.vocoder.sound(mel, seed=seed)
        self.spent.append((time.perf_counter() - begun, sound.seconds))
        return sound.samples

    def figures(self) -> dict[str, float]:
        """Return the vocoder's RTF and the encoder's seconds over the reference's; the first of each only warms up."""
        encoded, spent = list(self.encoded.values())[1:], self.spent[1:]
        return {
            "vocoder RTF": round(float(np.median([busy / long for busy, long in spent])), 4),
            "encoder share": round(float(np.median([one.seconds / long for one, long in encoded])), 4),
        }


def choose_voices(speech: Path, clips: int) -> list[Voice]:
    """Return every held-out voice with ``clips`` clips to resynthesise, spread over its recordings."""
    rows = defaultdict(list)
    for row in recordings(speech / "index.tsv"):
        if row["speaker"] in held_out().speakers and row["text"] and SHORTEST <= float(row["seconds"]) <= LONGEST:
            rows[row["speaker"]].append(row)
    voices = []
    for name, own in sorted(rows.items()):
        own.sort(key=lambda row: row["path"])
        wanted = 1 + clips + ENROLLED
        if len(own) < wanted:
            raise ValueError(f"{name} has only {len(own)} clips of {SHORTEST} to {LONGEST} s, not {wanted}.")
        chosen = [own[place * len(own) // wanted] for place in range(wanted)]
        found = list(recording_clips(chosen, speech, None))
        voices.append(Voice(name, found[0], found[1 : 1 + clips], found[1 + clips :]))
    return voices


class Panel:
    """The judges, who know the voices by their enrolled clips."""

    def __init__(self, voices: list[Voice], threads: int) -> None:
        self.listener, self.quality = judges.Listener(threads), judges.Quality()
        self.ears: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
            "resemblyzer": judges.Resemblyzer().embed,
            "d-vector": judges.DVector().embed,
        }
        self.know(voices)

    def know(self, voices: list[Voice]) -> None:
        """Tell voices from each other, these and no others."""
        self.known = {
            name: {voice.name: self._mean(ear, voice.enrolled) for voice in voices} for name, ear in self.ears.items()
        }

    def hear(self, samples: np.ndarray, rate: int, voice: str, said: Clip, codes_of: str, seed: int) -> Heard:
        """Return what the judges say of a sound that should be ``said``'s words in ``voice``."""
        transcript = self.listener.transcribe(samples, rate)
        spoken = judges.words(said.text)
        scores = {}
        for name, ear in self.ears.items():
            vector = ear(samples, rate)
            scores[name] = {other: round(float(vector @ known), 4) for other, known in self.known[name].items()}
        return Heard(
            voice,
            codes_of,
            said.name,
            seed,
            judges.errors(spoken, judges.words(transcript)),
            len(spoken),
            transcript,
            round(self.listener.log_probability(samples, rate, said.text), 4),
            round(self.quality.score(samples, rate), 3),
            scores,
        )

    @staticmethod
    def _mean(ear: Callable[[np.ndarray, int], np.ndarray], clips: list[Clip]) -> np.ndarray:
        mean = np.mean([ear(clip.samples, clip.rate) for clip in clips], axis=0)
        return mean / np.linalg.norm(mean)


def summary(heard: list[Heard]) -> dict[str, float]:
    """Return the rates and means of some sounds."""
    found = {
        "word error rate": sum(one.word_errors for one in heard) / max(1, sum(one.words for one in heard)),
        "log-probability of the text": float(np.mean([one.log_probability for one in heard])),
        "quality": float(np.mean([one.quality for one in heard])),
    }
    for judge in heard[0].scores:
        found[f"nearest, {judge}"] = float(np.mean([one.nearest(judge) == one.voice for one in heard]))
        found[f"similarity, {judge}"] = float(np.mean([one.scores[judge][one.voice] for one in heard]))
    return {name: round(value, 4) for name, value in found.items()}


def medians(heard: list[Heard]) -> dict[str, float]:
    """Return the median over the seeds of every figure of summary()."""
    by_seed = [summary([one for one in heard if one.seed == seed]) for seed in sorted({one.seed for one in heard})]
    return {name: round(float(np.median([one[name] for one in by_seed])), 4) for name in by_seed[0]}


Limits = dict[str, tuple[float, str]]


def verdicts(figures: dict[str, float], limits: Limits) -> dict[str, bool]:
    """Return for each limit whether it is kept."""
    return {
        name: figures[name] <= limit if kind == "at most" else figures[name] >= limit
        for name, (limit, kind) in limits.items()
        if name in figures
    }


def resynthesis(weights: Path, speech: Path, out: Path, clips: int, seeds: int) -> dict[str, Any]:
    """Judge, write resynthesis.json, .md and .png into ``out``, and return what the first of them holds."""
    bench = Bench(WeightsFolder(weights, read_card(weights), "to be judged"))
    torch.set_num_threads(bench.threads)
    voices = choose_voices(speech, clips)
    panel = Panel(voices, bench.threads)
    natural, made, crossed, pictures = [], [], [], []
    for place, voice in enumerate(voices):
        for number, clip in enumerate(voice.targets):
            natural.append(panel.hear(clip.samples, clip.rate, voice.name, clip, voice.name, 0))
            for seed in range(1, seeds + 1):
                sound = bench.speak(clip, voice.prompt, seed)
                made.append(panel.hear(sound, bench.vocoder.sample_rate, voice.name, clip, voice.name, seed))
                if number == 0 and seed == 1:
                    pictures.append((f"{voice.name}: {clip.text[:60].lower()}", clip, sound))
        for other in (voices[(place + step) % len(voices)] for step in CROSSINGS):
            for seed in range(1, seeds + 1):
                sound = bench.speak(voice.targets[0], other.prompt, seed)
                crossed.append(
                    panel.hear(sound, bench.vocoder.sample_rate, other.name, voice.targets[0], voice.name, seed)
                )
        log.info(
            "%s: recorded %s, made %s",
            voice.name,
            *(summary([one for one in group if one.codes_of == voice.name]) for group in (natural, made)),
        )
    bench.encoder.close()
    figures = medians(made) | {f"crossed {name}": value for name, value in medians(crossed).items()} | bench.figures()
    report = conditions("resynthesis", f"--clips {clips} --seeds {seeds}", bench.threads) | {
        "figures": figures,
        "limits kept": verdicts(figures, LIMITS),
        "recorded": medians(natural),
        "voices": {
            voice.name: medians([one for one in made if one.voice == voice.name])
            | {"recorded word error rate": summary([o for o in natural if o.voice == voice.name])["word error rate"]}
            for voice in voices
        },
        "sounds": [asdict(one) for one in [*made, *crossed]],
    }
    write(report, out, "resynthesis", "Re-synthesis of held-out voices", LIMITS)
    draw(pictures, bench.encoder.mel, out / "resynthesis.png")
    return report


def conditions(what: str, options: str, threads: int) -> dict[str, Any]:
    """Return how a report was made: its first lines."""
    return {
        "command": f"python -m training.evaluate {what} {options}",
        "commit": _commit(),
        "conditions": f"{platform.machine()}, {threads} threads, torch {torch.__version__}",
    }


def write(report: dict[str, Any], out: Path, name: str, title: str, limits: Limits) -> None:
    """Write the report as JSON and as Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / f"{name}.md").write_text(as_markdown(report, title, limits), encoding="utf-8")


def as_markdown(report: dict[str, Any], title: str, limits: Limits) -> str:
    """Return the report as tables."""
    lines = [
        f"# {title}",
        "",
        f"`{report['command']}` at {report['commit']}; {report['conditions']}.",
        "",
        "| figure | median over seeds | wanted | recordings |",
        "|---|---|---|---|",
    ]
    for name, value in report["figures"].items():
        limit, kind = limits.get(name, (None, ""))
        mark = "" if limit is None else f"{kind} {limit} {'✓' if report['limits kept'][name] else '✗'}"
        recorded = report.get("recorded", {}).get(name, "")
        lines.append(f"| {name} | {value} | {mark} | {recorded} |")
    for name, value in report.get("gate", {}).items():
        lines.append(f"| gate: word error rate of {name} | {value} | | |")
    names = list(next(iter(report["voices"].values())))
    lines += ["", f"| voice | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    lines += [
        f"| {voice} | {' | '.join(str(row[name]) for name in names)} |" for voice, row in report["voices"].items()
    ]
    return "\n".join([*lines, ""])


def draw(pictures: list[tuple[str, Clip, np.ndarray]], config: MelConfig, path: Path) -> None:
    """Draw the mels of recordings (above) and of what came back (below)."""
    from matplotlib.figure import Figure

    from stepaudio import audio

    figure = Figure(figsize=(12, 2.6 * len(pictures)), dpi=60)
    for number, (title, clip, sound) in enumerate(pictures):
        recorded = audio.resample(Waveform(clip.samples, clip.rate), config.sampling_rate).samples
        axes = figure.add_subplot(len(pictures), 1, number + 1)
        rows = [log_mel(one, config).T for one in (recorded, sound)]
        wide = max(row.shape[1] for row in rows)
        rows = [np.pad(row, ((0, 0), (0, wide - row.shape[1])), constant_values=-11.5) for row in rows]
        axes.imshow(np.concatenate([rows[1], rows[0]]), origin="lower", aspect="auto", vmin=-9, vmax=1, cmap="magma")
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    figure.tight_layout()
    figure.savefig(path)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> None:
    """Judge one thing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("resynthesis", "clone"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=3, help="clips of each voice (resynthesis)")
    parser.add_argument("--texts", type=int, default=4, help="texts for each voice (clone)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="work folder with the teachers' held-out clips (clone: the gate)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.what == "resynthesis":
        report = resynthesis(options.weights, options.speech, options.out, options.clips, options.seeds)
    else:
        from training.evaluate_clone import clone  # which builds on this module

        report = clone(options.weights, options.speech, options.out, options.texts, options.seeds, options.work)
    sys.stdout.write("".join(f"{name}: {value}\n" for name, value in report["figures"].items()))


if __name__ == "__main__":
    main()
