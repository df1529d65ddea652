"""``python -m stepaudio doctor``: what runs where and what is missing, in one screen."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from stepaudio import device, loading
from stepaudio.device import Runtime
from stepaudio.errors import StepAudioError
from stepaudio.settings import Settings
from stepaudio.variants import variants
from stepaudio.weights import WeightsFolder, choose_weights

PACKAGES = ("gradio", "transformers", "funasr", "torchaudio", "onnxruntime-gpu", "onnxruntime", "diskcache", "numpy")
MARKS = {"good": "✅", "note": "ℹ️", "bad": "❌"}


@dataclass(frozen=True)
class Finding:
    """One line: how it stands (a key of MARKS), what was looked at, what was found."""

    mark: str
    name: str
    found: str


@dataclass(frozen=True)
class Examination:
    """All findings, in the order in which they are shown."""

    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether nothing was found that keeps the product from working."""
        return all(finding.mark != "bad" for finding in self.findings)


def examine(settings: Settings) -> Examination:
    """Look at Python, packages, device, weights and cache; every part of the weights is really loaded."""
    runtime = device.choose(settings.device, settings.dtype, tf32=settings.tf32, threads=settings.threads or None)
    device.apply(runtime)
    findings = [*_machine(runtime), *_cache(settings)]
    try:
        weights = choose_weights(settings)
    except StepAudioError as error:
        return Examination((*findings, Finding("bad", "Weights", str(error))))
    mark = "good" if weights.card.speaks else "note"
    findings.append(Finding(mark, "Weights", f"{weights.card.title} in {weights.path} ({weights.reason})"))
    if not weights.card.speaks:
        findings.append(Finding("note", "", weights.card.notice.get("en", "")))
    findings += _parts(weights, settings, runtime)
    return Examination(tuple(findings))


def render(examination: Examination) -> str:
    """Return the findings as text for a terminal, and a last line that sums up."""
    width = max(len(finding.name) for finding in examination.findings)
    lines = [f"{MARKS[f.mark]} {f.name.ljust(width)}  {f.found}" for f in examination.findings]
    lines.append("Everything needed is there." if examination.healthy else "Something is missing: see the ❌ above.")
    return "\n".join(lines) + "\n"


def _machine(runtime: Runtime) -> Iterator[Finding]:
    yield Finding("good", "Python", f"{platform.python_version()} on {platform.platform(terse=True)}")
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    yield Finding("good", "torch", f"{torch.__version__} (build: {built})")
    yield Finding("good" if runtime.on_gpu else "note", "Device", f"{runtime.reason}; {runtime.threads} CPU threads")
    yield Finding("note", "GPU driver", _driver())
    versions = [f"{name} {version}" for name in PACKAGES if (version := _version(name)) is not None]
    yield Finding("good", "Packages", ", ".join(versions))
    two = _version("onnxruntime-gpu") is not None and _version("onnxruntime") is not None
    if two:
        yield Finding(
            "bad", "ONNX Runtime", "onnxruntime and onnxruntime-gpu share one folder; please uninstall onnxruntime."
        )
    ffmpeg = shutil.which("ffmpeg")
    yield Finding("good" if ffmpeg else "note", "ffmpeg", ffmpeg or "not installed: m4a and video files cannot be read")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str:
    """Return the driver's version and the GPUs as nvidia-smi tells them, or that there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "nvidia-smi is not here"
    query = [program, "--query-gpu=driver_version,name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi does not answer: {error}"
    return "; ".join(done.stdout.strip().splitlines())


def _cache(settings: Settings) -> Iterator[Finding]:
    folder: Path = settings.cache_dir
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"x")
        free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        yield Finding("bad", "Cache", f"{folder} cannot be written ({error.strerror}): every request would be a miss")
    else:
        yield Finding("good", "Cache", f"{folder} can be written, {free:.1f} GB free")


def _parts(weights: WeightsFolder, settings: Settings, runtime: Runtime) -> Iterator[Finding]:
    """Load each part and say where it runs; what cannot be loaded is told in its own words."""
    for name, load in loading.part_loaders(weights, settings, runtime).items():
        try:
            yield Finding("good", name, load())
        except StepAudioError as error:
            yield Finding("bad", name, str(error))
    for variant in variants(weights):
        yield Finding("note", f"Variant {variant.name}", variant.reason["en"] or "runs")
