"""Every path, device, limit and default of the product; the only reader of STEPAUDIO_* and of their flags.

A setting comes from, in this order: a command-line flag (``--cache-dir``), an environment variable
(``STEPAUDIO_CACHE_DIR``), the default below. A STEPAUDIO_* variable that no setting has is an error: a typing
mistake must not pass for a setting that works.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from stepaudio.errors import InvalidInput

PREFIX = "STEPAUDIO_"


class Settings(BaseSettings):
    """One immutable object, built once in app.py or the command line, and passed down."""

    # No number of seconds is infinite: it could not be told as a number of samples.
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    models_dir: Path = Field(Path("models"), description="folder that holds weights folders")
    weights: str = Field(
        "", description="the weights folder to use: a name under models_dir, or a path; empty: chosen by itself"
    )
    cache_dir: Path = Field(Path("cache"), description="folder of the encoder cache (and of the tiny stand-in weights)")
    cache_megabytes: int = Field(1024, ge=1, description="upper bound of the encoder cache; least recently used goes")
    cache_enabled: bool = Field(True, description="false: every reference is encoded anew")

    data_dir: Path = Field(Path("data"), description="folder of the saved voices")
    max_voices: int = Field(200, ge=1, description="how many voices may be saved")
    voices_megabytes: int = Field(1024, ge=1, description="upper bound of all saved voices together")

    require_consent: bool = Field(
        False, description="a new voice is taken only with the tick that its speaker agreed to it"
    )

    # The system takes an empty one for every interface, without a word.
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on; 0.0.0.0 for every interface")
    port: int = Field(7860, ge=0, le=65535, description="port of the page and of the health checks")
    login: str = Field(
        "", repr=False, description="name:password that the page asks for (HTTP Basic); empty: nobody is asked"
    )
    drain_seconds: float = Field(
        30.0, ge=0, le=3600, description="how long accepted requests may take to end when the server is stopped"
    )
    temp_dir: str = Field("", description="folder below which uploads and results are kept; empty: the system's own")
    temp_megabytes: int = Field(
        1024, ge=1, description="upper bound of uploads and results; the oldest go, then new ones are turned away"
    )
    root_path: str = Field("", description="sub-path under which a reverse proxy serves the page, e.g. /voice")
    queue_limit: int = Field(
        16, ge=1, le=32, description="jobs that may wait (each holds a thread); the next one is told to try later"
    )

    client_limit: int = Field(8, ge=1, description="jobs of one client of the API that may wait or run at a time")
    api_keys: str = Field(
        "", repr=False, description="keys, separated by commas, one of which a program must send; empty: none is needed"
    )
    api_keys_file: str = Field("", description="file with such keys, one a line")
    request_seconds: float = Field(
        600.0, gt=0, description="longest time that a request of the API may take, waiting in the line included"
    )
    max_batch_lines: int = Field(1000, ge=1, description="longest list of texts of one batch over the API")
    batches_megabytes: int = Field(512, ge=1, description="upper bound of the sounds of all batches that are kept")

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the networks run")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="precision of the language model; auto: bfloat16 on a GPU, if need be emulated, else float32",
    )
    variant: Literal["auto", "base", "awq", "bnb-int8", "bnb-nf4"] = Field(
        "auto",
        description="form of the language model; awq: the folder Step-Audio-EditX-AWQ-4bit, bnb: packed by "
        "bitsandbytes when loaded; auto: base, else what is there",
    )
    tf32: bool = Field(True, description="TF32 for float32 work on a GPU")
    linguistic_engine: Literal["torch", "torch-bf16", "onnx", "onnx-int8"] = Field(
        "torch", description="what computes the linguistic codes; onnx and onnx-int8 run what export-encoder wrote"
    )
    linguistic_onnx_dir: str = Field("", description="folder of the exported encoder; empty: the FunASR folder")
    cuda_graphs: bool = Field(True, description="a GPU replays the language model's steps as CUDA graphs")
    fused_kernels: bool = Field(
        True,
        description="the language model's steps in kernels of our own: on a GPU by Triton (needs a C compiler), on a "
        "CPU, for a small model, by Numba",
    )
    prefix_megabytes: int = Field(
        256,
        ge=0,
        description="memory for the beginnings of prompts (one a voice and transcript); 0: read anew each time",
    )
    whisper_dir: str = Field(
        "", description="folder of a Whisper (transformers' layout) that transcribes; empty: the Paraformer, if it can"
    )
    threads: int = Field(0, ge=0, description="CPU threads; 0: one for each core, within the container's limit")

    max_upload_megabytes: int = Field(50, ge=1, description="largest reference file")
    min_reference_seconds: float = Field(0.5, gt=0, description="shortest reference")
    max_reference_seconds: float = Field(30.0, gt=0, description="what is kept of a longer reference")
    long_reference: Literal["cut", "refuse"] = Field("cut", description="what happens to a longer reference")
    max_text_characters: int = Field(5000, ge=1, description="longest text to speak in one request")
    max_transcript_characters: int = Field(1000, ge=1, description="longest transcript of a reference")
    max_output_seconds: float = Field(300.0, gt=0, description="longest sound of one request")
    passage_seconds: float = Field(
        15.0, ge=1, description="a text that takes longer to speak is split into passages where sentences end"
    )
    decode_rows: int = Field(
        16,
        ge=1,
        le=64,
        description="passages, takes and texts decoded side by side (at full size about 0.25 GB of memory each)",
    )

    temperature: float = Field(0.7, ge=0, le=2, description="default sampling temperature; 0: greedy")
    top_k: int = Field(50, ge=0, description="default number of candidates per step; 0: all")
    top_p: float = Field(1.0, gt=0, le=1, description="default share of probability kept; 1: all")
    repetition_rule: bool = Field(True, description="ban an id that already came twice within the last ten")
    prompt_markers: bool = Field(
        False, description="put <audio_start> and <text_start>/<text_end> into the prompt (unofficial; may help)"
    )
    flow_steps: int = Field(
        0, ge=0, le=50, description="default Euler steps of the flow; 0: as many as the weights ask for, 10 as a rule"
    )

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="least level that is logged")
    log_format: Literal["text", "json"] = Field("text", description="json: one JSON object for each request")

    hub_token: str = Field("", repr=False, description="access token for the download of weights, where one is needed")

    @property
    def max_upload_bytes(self) -> int:
        return self.max_upload_megabytes * 1024 * 1024


def load_settings(flags: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings from flags, environment and defaults.

    Raises InvalidInput with one sentence for an unknown variable or a value outside its limits.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise InvalidInput(f"The environment variable {unknown[0]} is not a setting of stepaudio; see the README.")
    try:
        return Settings(**dict(flags or {}))
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "a setting"
        raise InvalidInput(f"The setting {name} has the value {first['input']!r}: {first['msg']}.") from error


def bound_waiting() -> None:
    """Tell GNU's OpenMP, with which torch computes, how long one thread may wait for another before it sleeps.

    For this torch must not have been loaded; what the operator has set stays. Left to itself a thread waits for
    milliseconds, also where another program has taken the other's core. Measured on two cores, a hit with the machine
    to itself and beside a program that took one core: 0.20 s and 0.65 s by default, 0.19 s and 0.33 s so bounded,
    0.23 s and 0.30 s with a tenth of it.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def report_to_nobody() -> None:
    """Tell ONNX Runtime not to report its use to Microsoft, which its builds do of themselves.

    For this it must not have been imported: it reads the variable once. What the operator has set stays.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def add_flags(parser: argparse.ArgumentParser, only: Sequence[str] | None = None) -> None:
    """Add one ``--flag`` for each setting (or for those named) to the parser."""
    group = parser.add_argument_group("settings (each also as an environment variable STEPAUDIO_...)")
    for name, field in Settings.model_fields.items():
        if only is not None and name not in only:
            continue
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=f"setting_{name}",
            metavar="|".join(map(str, choices(field.annotation))) or name.upper(),
            help=f"{field.description} (default: {field.default if field.default != '' else 'none'})".replace(
                "%", "%%"
            ),
        )


def flags_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as flags."""
    return {
        name.removeprefix("setting_"): value
        for name, value in vars(arguments).items()
        if name.startswith("setting_") and value is not None
    }


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the allowed words of a Literal annotation, () for any other."""
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def markdown_table() -> str:
    """Return the configuration table of the README."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        words = " \\| ".join(map(str, choices(field.annotation)))
        meaning = f"{field.description}{f' ({words})' if words else ''}"
        default = f"`{field.default}`" if field.default != "" else "(none)"
        rows.append(f"| `{PREFIX}{name.upper()}` | {default} | {meaning} |")
    return "\n".join(rows) + "\n"
