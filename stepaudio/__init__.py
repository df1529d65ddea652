"""stepaudio: clone and edit a voice on one's own hardware with Step-Audio-EditX."""

from stepaudio.errors import Busy, Cancelled, GenerationError, InvalidInput, StepAudioError, WeightsError
from stepaudio.library import load_pipeline, read_sound, write_sound
from stepaudio.settings import Settings, load_settings
from stepaudio.types import Reference, SamplingParams, Synthesis, Task, Waveform

__all__ = [
    "Busy",
    "Cancelled",
    "GenerationError",
    "InvalidInput",
    "Reference",
    "SamplingParams",
    "Settings",
    "StepAudioError",
    "Synthesis",
    "Task",
    "Waveform",
    "WeightsError",
    "load_pipeline",
    "load_settings",
    "read_sound",
    "write_sound",
]
