"""Audio tokens to sound, in two stages that are timed apart: the flow (to mel) and HiFT or BigVGAN (to samples)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepaudio.errors import GenerationError, InvalidInput
from stepaudio.tokens import rows
from stepaudio.types import FloatArray, SpeechTokens, Waveform
from stepaudio.vocoder.bigvgan import BigVGAN, without_filters
from stepaudio.vocoder.checks import check_finite, check_rows
from stepaudio.vocoder.config import BigvganConfig, HiftConfig, VocoderConfig, read_config
from stepaudio.vocoder.flow import Flow, Progress, ShouldStop
from stepaudio.vocoder.hift import HiFT
from stepaudio.vocoder.noise import FLOW_NOISE, SOURCE_NOISE, Noise, draw_noise
from stepaudio.vocoder.sound_stream import sound_stream
from stepaudio.vocoder.stream import StreamConfig, VocoderStream, Voice
from stepaudio.vocoder.weights import FLOW_NAME, HIFT_NAME, check_kind, fill, hift_names, read_state
from stepaudio.vocoder.windows import bigvgan_sound, hift_sound


class Vocoder:
    """The two networks of a ``CosyVoice-300M-25Hz`` folder, on one device.

    Holds no state between calls; calls from several threads do not disturb each other.
    """

    def __init__(self, config: VocoderConfig, flow: Flow, hift: HiFT | BigVGAN, device: torch.device) -> None:
        self.config = config
        self.device = device
        self._flow = flow
        self._hift = hift

    @property
    def sample_rate(self) -> int:
        """Samples of sound a second."""
        return self.config.hift.sample_rate

    def flow(
        self,
        tokens: SpeechTokens,
        prompt_tokens: SpeechTokens,
        prompt_mel: FloatArray,
        speaker: FloatArray,
        *,
        seed: int,
        steps: int = 10,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> Tensor:
        """Return the mel of ``tokens``: float32 (1, 80, 6 * groups), on the vocoder's device.

        The voice comes from the prompt: its tokens, its mel float32 (F, 80), stretched to the tokens'
        length, and the speaker embedding float32 (192,). ``progress`` hears the fraction done, 0..1.

        Raises GenerationError for no tokens, for numbers that are no audio tokens and for a mel that is not
        finite; InvalidInput for a prompt without a whole group or mel; Cancelled between two steps as soon as
        ``should_stop`` says so.
        """
        if tokens.groups == 0:
            raise GenerationError("The language model produced no sound; trying again may help.")
        _check_prompt(prompt_tokens, prompt_mel, steps)
        prompt_rows = rows(prompt_tokens.numbers)
        both = np.concatenate((prompt_rows, rows(tokens.numbers)))  # (L, 2)
        check_rows(both, self.config.flow.vocabulary)
        conditions = self._flow.conditions(
            torch.tensor(both, device=self.device)[None],
            len(prompt_rows),
            torch.tensor(prompt_mel, device=self.device)[None],
            torch.tensor(speaker, device=self.device)[None],
        )
        noise = draw_noise(seed, FLOW_NOISE, conditions.shape[1], self.config.flow.mel_channels)
        mel = self._flow.decoder(
            noise.to(self.device), conditions, steps=steps, progress=progress, should_stop=should_stop
        )
        mel = mel[:, self._flow.frames_per_row * len(prompt_rows) :].transpose(1, 2)  # (1, 80, frames)
        check_finite(mel, "The flow produced values")
        return mel

    def sound(
        self, mel: Tensor, *, seed: int, progress: Progress | None = None, should_stop: ShouldStop | None = None
    ) -> Waveform:
        """Return the sound of a mel (1, 80, T): 480 samples a frame, within the yaml's audio_limit.

        The seed is that of HiFT's source noise; BigVGAN has no noise, and 1 is its limit. A long mel is computed in
        windows (see windows.py), after each of which ``progress`` hears the fraction done.
        Raises GenerationError for a mel without frames and for samples that are not finite, and Cancelled between
        two windows as soon as ``should_stop`` says so.
        """
        if mel.shape[-1] == 0:
            raise GenerationError("The flow produced no sound; trying again may help.")
        mel = mel.to(self.device)
        if isinstance(self._hift, BigVGAN):
            samples = bigvgan_sound(self._hift, mel, progress=progress, should_stop=should_stop)[0]
        else:
            draw = Noise(seed, SOURCE_NOISE, 1).take
            samples = hift_sound(self._hift, mel, draw, progress=progress, should_stop=should_stop)[0]
        check_finite(samples, "The vocoder produced samples")
        return Waveform(samples.cpu().numpy(), self.sample_rate)

    def stream(
        self,
        prompt_tokens: SpeechTokens,
        prompt_mel: FloatArray,
        speaker: FloatArray,
        *,
        seed: int,
        steps: int = 10,
        should_stop: ShouldStop | None = None,
        config: StreamConfig = StreamConfig(),  # noqa: B008 - frozen, so shared safely
    ) -> VocoderStream:
        """Return a stream that turns audio tokens into sound while they are being written.

        The voice comes from the prompt, as in flow(); the noises are those of flow() and sound() for the seed.
        Raises InvalidInput for a prompt without a whole group or mel.
        """
        _check_prompt(prompt_tokens, prompt_mel, steps)
        voice = Voice(
            rows(prompt_tokens.numbers),
            torch.tensor(prompt_mel, device=self.device)[None],
            torch.tensor(speaker, device=self.device)[None],
        )
        noise = Noise(seed, FLOW_NOISE, self.config.flow.mel_channels).take
        sound = sound_stream(self._hift, seed, self.device)
        return VocoderStream(self._flow, sound, voice, noise, steps=steps, config=config, should_stop=should_stop)


def _check_prompt(tokens: SpeechTokens, mel: FloatArray, steps: int) -> None:
    if tokens.groups == 0 or len(mel) == 0:
        raise InvalidInput("The reference recording is too short: it must hold at least 0.12 seconds of sound.")
    if steps < 1:
        raise InvalidInput(f"The number of flow steps must be at least 1, not {steps}.")


def sound_generator(config: HiftConfig | BigvganConfig) -> HiFT | BigVGAN:
    """Return the sound generator of a config, with weights still to be filled in."""
    return BigVGAN(config) if isinstance(config, BigvganConfig) else HiFT(config)


def load_vocoder(folder: Path, device: torch.device) -> Vocoder:
    """Return the vocoder of a ``CosyVoice-300M-25Hz`` folder (cosyvoice.yaml, flow.pt, hift.pt) on ``device``.

    Raises WeightsError for a file that is missing, damaged or does not fit the others.
    """
    config = read_config(folder)
    # Built without memory: initial values would be drawn only to be thrown away.
    with torch.device("meta"):
        flow = Flow(config.flow)
        hift = sound_generator(config.hift)
    fill(flow, read_state(folder / FLOW_NAME), folder / FLOW_NAME)
    path = folder / HIFT_NAME
    weights = hift_names(read_state(path))
    check_kind(weights, config.hift.kind, path)
    if isinstance(hift, BigVGAN):
        weights = without_filters(weights, path)
    fill(hift, weights, path)
    return Vocoder(config, flow.to(device), hift.to(device), device)
