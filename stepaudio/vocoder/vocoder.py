"""Audio tokens to sound, in two stages that are timed apart: the flow (to mel) and HiFT or BigVGAN (to samples)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from stepaudio.errors import GenerationError, InvalidInput
from stepaudio.tokens import ROWS_PER_GROUP, rows
from stepaudio.types import FloatArray, IntArray, SpeechTokens, Waveform
from stepaudio.vocoder.bigvgan import BigVGAN, without_filters
from stepaudio.vocoder.checks import check_finite, check_rows
from stepaudio.vocoder.config import BigvganConfig, HiftConfig, VocoderConfig, read_config
from stepaudio.vocoder.flow import Flow, Progress, ShouldStop
from stepaudio.vocoder.hift import HiFT
from stepaudio.vocoder.lane import Lane
from stepaudio.vocoder.noise import FLOW_NOISE, SOURCE_NOISE, Noise, draw_noise
from stepaudio.vocoder.sound_stream import sound_stream
from stepaudio.vocoder.stream import StreamConfig, VocoderStream, Voice
from stepaudio.vocoder.weights import FLOW_NAME, HIFT_NAME, check_kind, fill, hift_names, read_state
from stepaudio.vocoder.windows import bigvgan_sound, hift_sound

_ROWS_ON_CPU = 1
_ROWS_ELSEWHERE = 3000
"""Rows, 25 a second, that go through the flow at once, prompts and filling included, if that is several sounds: each
by itself on a CPU, which has enough to do with one; two minutes on a GPU, which take a gigabyte at full size."""


@dataclass(frozen=True, eq=False)
class FlowOrder:
    """What becomes one mel: tokens, whose voice speaks them, and the seed of the noise; see Vocoder.flow()."""

    tokens: SpeechTokens
    prompt_tokens: SpeechTokens
    prompt_mel: FloatArray
    speaker: FloatArray
    seed: int


class Vocoder:
    """The two networks of a ``CosyVoice-300M-25Hz`` folder, on one device.

    rows_at_once: how many rows go through the flow at once, if they are those of several sounds (None: see above).
    Holds no state between calls; calls from several threads do not disturb each other.
    """

    def __init__(
        self,
        config: VocoderConfig,
        flow: Flow,
        hift: HiFT | BigVGAN,
        device: torch.device,
        *,
        rows_at_once: int | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self._flow = flow
        self._hift = hift
        self._lane = Lane(device)
        self._rows_at_once = rows_at_once or (_ROWS_ON_CPU if device.type == "cpu" else _ROWS_ELSEWHERE)

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
        order = FlowOrder(tokens, prompt_tokens, prompt_mel, speaker, seed)
        (mel,) = self.flow_many([order], steps=steps, progress=progress, should_stop=should_stop)
        return mel

    def flow_many(
        self,
        orders: Sequence[FlowOrder],
        *,
        steps: int = 10,
        progress: Progress | None = None,
        should_stop: ShouldStop | None = None,
    ) -> list[Tensor]:
        """Return what flow() would for each order; several go side by side, those of like length together.

        The mels are those of flow() but for rounding. ``progress`` hears the fraction done of all.
        Raises what flow() raises, for all orders at once.
        """
        tables = [self._table(order, steps) for order in orders]
        mels = dict[int, Tensor]()
        for numbers in _side_by_side([len(table) for table in tables], self._rows_at_once):
            made = self._flow_at_once(
                [orders[number] for number in numbers],
                [tables[number] for number in numbers],
                steps,
                _share(progress, len(mels), len(numbers), len(orders)),
                should_stop,
            )
            mels.update(zip(numbers, made, strict=True))
        return [mels[number] for number in range(len(orders))]

    def _table(self, order: FlowOrder, steps: int) -> IntArray:
        """Return the rows int64 (L, 2) of an order, those of the prompt first; see flow() for what is raised."""
        if order.tokens.groups == 0:
            raise GenerationError("The language model produced no sound; trying again may help.")
        _check_prompt(order.prompt_tokens, order.prompt_mel, steps)
        table = np.concatenate((rows(order.prompt_tokens.numbers), rows(order.tokens.numbers)))
        check_rows(table, self.config.flow.vocabulary)
        return table

    def _flow_at_once(
        self,
        orders: Sequence[FlowOrder],
        tables: Sequence[IntArray],
        steps: int,
        progress: Progress | None,
        should_stop: ShouldStop | None,
    ) -> list[Tensor]:
        """Return the mel (1, 80, frames) of each order; tables: its rows."""
        flow, channels = self._flow, self.config.flow.mel_channels
        lengths, most = [len(table) for table in tables], max(map(len, tables))
        filled = [np.pad(table, ((0, most - len(table)), (0, 0))) for table in tables]
        prompt_rows = [ROWS_PER_GROUP * order.prompt_tokens.groups for order in orders]
        prompts = [
            flow.prompt(torch.tensor(order.prompt_mel, device=self.device)[None], count, most)
            for order, count in zip(orders, prompt_rows, strict=True)
        ]
        present = None
        if min(lengths) < most:
            present = torch.arange(most, device=self.device) < torch.tensor(lengths, device=self.device)[:, None]
        conditions = flow.conditions(
            torch.tensor(np.stack(filled), device=self.device),
            torch.cat(prompts),
            torch.tensor(np.stack([order.speaker for order in orders]), device=self.device),
            present,
        )
        frames = [flow.frames_per_row * length for length in lengths]
        noise = torch.zeros(len(orders), max(frames), channels)
        for row, (order, count) in enumerate(zip(orders, frames, strict=True)):
            noise[row, :count] = draw_noise(order.seed, FLOW_NOISE, count, channels)[0]
        solved = flow.decoder(
            noise.to(self.device),
            conditions,
            steps=steps,
            present=None if present is None else present.repeat_interleave(flow.frames_per_row, dim=1),
            progress=progress,
            should_stop=should_stop,
        )
        mels = [
            solved[row : row + 1, flow.frames_per_row * count : end].transpose(1, 2)
            for row, (count, end) in enumerate(zip(prompt_rows, frames, strict=True))
        ]
        for mel in mels:
            check_finite(mel, "The flow produced values")
        return mels

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
        noise = Noise(seed, FLOW_NOISE, self.config.flow.mel_channels).take
        with self._lane.taken():
            voice = Voice(
                rows(prompt_tokens.numbers),
                torch.tensor(prompt_mel, device=self.device)[None],
                torch.tensor(speaker, device=self.device)[None],
            )
            sound = sound_stream(self._hift, seed, self.device)
        return VocoderStream(
            self._flow, sound, voice, noise, self._lane, steps=steps, config=config, should_stop=should_stop
        )


def _side_by_side(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the numbers of the sounds that go at once: neighbours in length, of at most ``most`` rows with filling."""
    together: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda number: lengths[number]):
        if together and lengths[number] * (len(together) + 1) > most:
            yield together
            together = []
        together.append(number)
    if together:
        yield together


def _share(progress: Progress | None, before: int, these: int, all_of_them: int) -> Progress | None:
    """Return what hears the fraction done of some sounds among all."""
    return progress and (lambda fraction: progress((before + these * fraction) / all_of_them))


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
