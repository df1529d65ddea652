"""What a request of the API may say about how the sound is made, and what becomes of it."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_core import PydanticKnownError

from stepaudio.orders import MAX_SEED
from stepaudio.settings import Settings
from stepaudio.types import SamplingParams

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
"""Of audiostream.STREAM_FORMATS, in OpenAI's order."""

Speed = Annotated[float, Field(ge=0.25, le=4.0, allow_inf_nan=False)]
MOST_TEXT = 100_000
"""Characters that a field can hold at all; what may be spoken is a setting's affair."""

CONSENT: Any = Field(
    "", max_length=10_000, description="who agreed to the use of the recording; some servers ask for it"
)


def but_no_truth(value: Any) -> Any:
    """Refuse true and false for a number: Python takes them for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticKnownError("float_type")
    return value


class RunOptions(BaseModel):
    """How one sound is made; what is left out is as the settings say."""

    model_config = ConfigDict(extra="forbid")

    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="the same seed gives the same sound; else one drawn")
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False, description="of the sampling; 0: greedy")
    top_k: int | None = Field(None, ge=0, le=10_000, description="candidates at each step; 0: all")
    top_p: float | None = Field(None, ge=0.01, le=1, allow_inf_nan=False, description="share of probability kept")
    flow_steps: int | None = Field(None, ge=1, le=50, description="Euler steps of the flow")
    max_seconds: float | None = Field(None, ge=0.12, le=3600, allow_inf_nan=False, description="longest sound to make")

    _numbers = field_validator(*("seed", "temperature", "top_k", "top_p", "flow_steps", "max_seconds"), mode="before")(
        but_no_truth
    )

    def sampling(self, settings: Settings) -> SamplingParams:
        """Return how ids are drawn; the seed is drawn here, so that the answer's headers can tell it."""
        return SamplingParams(
            temperature=settings.temperature if self.temperature is None else self.temperature,
            top_k=settings.top_k if self.top_k is None else self.top_k,
            top_p=settings.top_p if self.top_p is None else self.top_p,
            repetition_rule=settings.repetition_rule,
            seed=secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed,
        )

    def steps(self, settings: Settings) -> int:
        """Return the Euler steps of the flow."""
        return settings.flow_steps if self.flow_steps is None else self.flow_steps
