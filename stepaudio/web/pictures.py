"""Pictures of sounds: waveforms as SVG and mel spectrograms as PNG, several on one time axis."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from stepaudio.audio import resample
from stepaudio.features import MelConfig, log_mel
from stepaudio.types import FloatArray, Waveform

WIDTH, HEIGHT = 1000, 100
"""Of a waveform's picture, in units of its own; it is stretched to the width of the page."""
MEL = MelConfig()
MEL_WIDTH = 800
# From silent to loud: dark blue, violet, orange, pale yellow; told apart in shades of grey as well.
_SHADES = np.array([[13, 8, 60], [90, 20, 130], [200, 60, 90], [250, 150, 50], [252, 240, 190]], np.float64)
ACTIVE_DB = 40.0
"""How far below the loudest 20 ms a part may lie to count for the level of a voice."""


def waveform_svg(sound: Waveform, seconds: float) -> str:
    """Return the outline of a sound as SVG, on an axis of so many seconds; its colour is that of the text around."""
    columns = max(int(WIDTH * min(sound.seconds / seconds, 1.0)), 1)
    parts = np.array_split(sound.samples, columns)
    peak = max(float(np.abs(sound.samples).max(initial=0.0)), 1e-4)
    tops = [HEIGHT / 2 * (1 - float(part.max()) / peak) if len(part) else HEIGHT / 2 for part in parts]
    bottoms = [HEIGHT / 2 * (1 - float(part.min()) / peak) if len(part) else HEIGHT / 2 for part in parts]
    line = " ".join(f"{x},{y:.1f}" for x, y in enumerate(tops))
    back = " ".join(f"{x},{y:.1f}" for x, y in reversed(list(enumerate(bottoms))))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" aria-hidden="true">'
        f'<polygon points="{line} {back}" fill="currentColor"/></svg>'
    )


def mel_png(sound: Waveform, seconds: float) -> str:
    """Return the mel spectrogram of a sound as a data address of a PNG, on an axis of so many seconds."""
    mel = log_mel(resample(sound, MEL.sampling_rate).samples, MEL)  # (frames, bands)
    columns = int(seconds * MEL.sampling_rate / MEL.hop_size) or 1
    scaled = np.clip((mel - mel.max(initial=-11.0) + 9.0) / 9.0, 0.0, 1.0)[:columns]
    places = np.linspace(0, 1, len(_SHADES))
    colours = np.stack([np.interp(scaled, places, _SHADES[:, channel]) for channel in range(3)], axis=-1)
    canvas = np.zeros((columns, MEL.num_mels, 4), np.uint8)  # what lies behind the end is clear
    canvas[: len(scaled), :, :3] = colours
    canvas[: len(scaled), :, 3] = 255
    picture = Image.fromarray(np.ascontiguousarray(canvas.transpose(1, 0, 2)[::-1])).resize((MEL_WIDTH, MEL.num_mels))
    target = io.BytesIO()
    picture.save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode("ascii")


def axis_ticks(seconds: float) -> list[float]:
    """Return the seconds at which an axis of this length has its marks: at most ten, at even steps."""
    step = next(step for step in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 600.0) if seconds / step <= 10)
    return [round(number * step, 1) for number in range(int(seconds / step + 1e-9) + 1)]


def level(samples: FloatArray, rate: int) -> float:
    """Return the level of a voice: the root mean square over what is not silence, 0 for no sound at all."""
    frame = max(rate // 50, 1)
    usable = len(samples) // frame * frame
    if usable == 0:
        return 0.0
    power = np.square(samples[:usable], dtype=np.float64).reshape(-1, frame).mean(axis=1)
    loudest = float(power.max())
    return float(np.sqrt(power[power >= loudest * 10 ** (-ACTIVE_DB / 10)].mean())) if loudest > 0 else 0.0


def matching_gains(sounds: Sequence[Waveform]) -> list[float]:
    """Return by what to multiply each sound so that all are as loud as the quietest; never more than 1."""
    levels = [level(sound.samples, sound.sample_rate) for sound in sounds]
    heard = [value for value in levels if value > 0]
    quietest = min(heard, default=0.0)
    return [quietest / value if value > 0 else 1.0 for value in levels]
