"""What is said in a sound, written down: by the very Paraformer that encodes references, or by a Whisper of the user's.

The real checkpoint holds the Paraformer's predictor and decoder beside its encoder, so nothing more has to be loaded
to transcribe Mandarin, Cantonese and English. A folder that holds the encoder alone cannot; ``why_not`` then says so.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stepaudio import audio
from stepaudio.encoder.funasr_folder import FunasrModel
from stepaudio.errors import WeightsError
from stepaudio.types import FloatArray, Waveform

SHORTEST = 880
"""Samples at 16 kHz, 55 ms: the Paraformer's front end makes no frame of less."""

# FunASR's own recipe for this model, https://github.com/modelscope/FunASR: 600 ms at a time with 300 ms to come.
_CHUNKS = {"chunk_size": [0, 10, 5], "encoder_chunk_look_back": 4, "decoder_chunk_look_back": 1}

Write = Callable[[FloatArray], str]


class Transcriber:
    """Writes down what is said in a sound, where ``available``; else ``why_not`` is one sentence. One at a time.

    name: what does the work, for people and logs; "" where nothing does.
    """

    def __init__(self, write: Write | None, *, name: str = "", why_not: str = "") -> None:
        """write: turns samples float32 (N,) at 16 kHz into words; None where nothing can."""
        if (write is None) != bool(why_not):
            raise ValueError("A transcriber has either something that writes or a reason why it has not.")
        self._write = write
        self.name = name
        self.why_not = why_not

    @property
    def available(self) -> bool:
        return self._write is not None

    def transcribe(self, waveform: Waveform) -> str:
        """Return the words of a mono sound of any rate, "" where none are heard. Raises WeightsError(why_not)."""
        if self._write is None:
            raise WeightsError(self.why_not)
        samples = audio.resample(waveform, audio.CODE_RATE).samples
        if len(samples) < SHORTEST:
            return ""
        with torch.inference_mode():
            return self._write(samples).strip()


def absent(why_not: str) -> Transcriber:
    """Return a transcriber that cannot transcribe, and says why."""
    return Transcriber(None, why_not=why_not)


def load_transcriber(
    funasr: FunasrModel | None, *, whisper_dir: str, trained: bool, device: torch.device
) -> Transcriber:
    """Return what transcribes: the Whisper in ``whisper_dir`` where one is named, else the loaded Paraformer.

    funasr: None where another engine than torch computes the linguistic codes. trained: whether its weights have
    learnt anything. Raises WeightsError for a folder that holds no Whisper.
    """
    if whisper_dir:
        return Transcriber(load_whisper(Path(whisper_dir), device), name=f"Whisper ({Path(whisper_dir).name})")
    if funasr is None:
        return absent("The Paraformer is run as ONNX, and that export holds its encoder alone: it cannot transcribe.")
    if not funasr.can_transcribe:
        return absent("These weights hold the Paraformer's encoder alone: they cannot transcribe; the real ones can.")
    if not trained:
        return absent("These weights are random and know no words: they cannot transcribe; the real ones can.")
    return Transcriber(paraformer_writer(funasr), name="Paraformer")


def paraformer_writer(funasr: FunasrModel) -> Write:
    """Return what writes with a whole Paraformer."""
    model: Any = funasr.model

    def write(samples: FloatArray) -> str:
        # The state of one sound lives in this dictionary, so nothing of it reaches the next one.
        state: dict[str, Any] = {}
        options = {**funasr.options, **_CHUNKS, "key": ["sound"], "is_final": True, "cache": state}
        (result,), _ = model.inference([torch.from_numpy(samples)], **options)
        return str(result["text"])

    return write


def load_whisper(folder: Path, device: torch.device) -> Write:
    """Return what writes with the Whisper in a folder of transformers' layout; raises WeightsError naming the folder.

    Nothing is fetched, and nothing but safetensors is read.
    """
    from transformers import WhisperForConditionalGeneration, WhisperProcessor  # heavy, and rarely wanted

    if not (folder / "config.json").is_file():
        raise WeightsError(f"The folder {folder} holds no Whisper model: its config.json is missing.")
    try:
        processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
        model = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
        what = " ".join(str(error).split())
        raise WeightsError(f"The folder {folder} holds no Whisper model that can be loaded: {what}") from error
    model = model.to(device).eval()

    def write(samples: FloatArray) -> str:
        heard = processor(samples, sampling_rate=audio.CODE_RATE, return_tensors="pt", return_attention_mask=True).to(
            device
        )
        ids = model.generate(heard.input_features, attention_mask=heard.attention_mask)
        return str(processor.batch_decode(ids, skip_special_tokens=True)[0])

    return write
