"""The shape of the code: who may import whom, what may appear where, and that importing does nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from stepaudio import errors

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "stepaudio"

# A module may import from lower layers and from its own package: so there is no cycle. A package counts as one name.
LAYERS = [
    {"types", "errors", "torchaudio_compat", "threads", "cgroups", "locks"},
    {"audio", "features", "tokens", "tasks", "timing", "settings", "log", "text", "verbalise", "joining", "cores"},
    {"device", "audiofile", "files", "tempfolder"},
    {"audiostream", "prompts", "cache", "encoder", "llm", "vocoder", "report", "transfer"},
    {"tiny", "hub"},
    {"snapshot"},
    {"download"},
    {"orders", "speech_stream", "weights", "asr", "metrics"},
    {"speaking"},
    {"pipeline"},
    {"memory", "variants"},
    {"loading"},
    {"library"},
    {"queue"},
    {"voices", "feed", "presets", "runs"},
    {"service", "doctor"},
    {"bench"},
    {"batches", "fieldtest", "export_encoder"},
    {"web"},
    {"api"},
    {"doors"},
    {"server", "commands"},
    {"cli"},
    {"__init__", "__main__"},
]
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}


def unit(path: Path) -> str:
    """Return the module or package below stepaudio that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(path: Path) -> set[str]:
    """Return the units of stepaudio that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "stepaudio":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("stepaudio.")}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    own = unit(path)
    assert own in LAYER_OF, f"{own} has no layer: give it one"
    wrong = {name for name in imports(path) if name != own and LAYER_OF[name] >= LAYER_OF[own]}
    assert not wrong, f"{own} imports from its own layer or from above: {sorted(wrong)}"


def matching(pattern: str, *, but: tuple[str, ...] = ()) -> list[str]:
    """Return the places in the package whose line matches, leaving out the units named."""
    return [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*FILES, ROOT / "app.py"]
        if path == ROOT / "app.py" or unit(path) not in but
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(pattern, line)
    ]


def test_the_environment_is_read_in_settings_only():
    assert matching(r"os\.environ|os\.getenv", but=("settings",)) == []


def test_devices_are_chosen_in_device_only():
    assert matching(r"cuda\.is_available|\.cuda\(|get_device_name", but=("device",)) == []


def test_onnxruntime_which_reports_from_its_import_on_is_imported_where_it_is_told_not_to():
    assert [place.split(":")[0] for place in matching(r"^\s*(import|from) onnxruntime")] == [
        "stepaudio/bench/suite.py",  # for its version, once the weights are loaded
        "stepaudio/encoder/export.py",
        "stepaudio/encoder/onnx_session.py",  # for its types
        "stepaudio/encoder/onnx_session.py",
    ]


def test_nothing_is_printed_and_nothing_unpickled():
    assert matching(r"^\s*print\(") == []
    assert matching(r"torch\.load\((?!.*weights_only=True)") == []
    assert matching(r"allow_pickle=True|import pickle|pickle\.load") == []


def test_everything_is_caught_in_one_place_only():
    assert [place.split(":")[0] for place in matching(r"except( Exception| BaseException)?\s*(as \w+)?:")] == [
        "stepaudio/web/handlers.py"
    ]


def test_the_tree_of_errors_names_every_kind():
    classes = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    kinds, found = set(), {"StepAudioError"}
    while found - kinds:
        kinds |= found
        found = {name for name, bases in classes.items() if bases & kinds}
    assert kinds - set(re.findall(r"\w+", errors.__doc__ or "")) == set()
    assert {"HubError", "TookTooLong", "OutOfMemory"} < kinds


def test_importing_the_package_has_no_effect():
    """Every module is imported in a process of its own, which then must look as it did before."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in FILES
        if path.name != "__main__.py"
    ]
    script = f"""
import importlib, logging, os, random, threading
import numpy, torch
# What these do on import (gradio draws random numbers, transformers names torch's compile cache) is not ours.
from stepaudio.torchaudio_compat import install
install()
import gradio
from transformers import PreTrainedModel
before = (logging.getLogger().handlers[:], logging.getLogger().level, torch.get_num_threads(), os.getcwd(),
          dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), threading.active_count(),
          torch.backends.cuda.matmul.allow_tf32, sorted(os.listdir()))
for name in {modules!r}:
    importlib.import_module(name)
after = (logging.getLogger().handlers[:], logging.getLogger().level, torch.get_num_threads(), os.getcwd(),
         dict(os.environ), random.getstate(), torch.get_rng_state().tolist(), threading.active_count(),
         torch.backends.cuda.matmul.allow_tf32, sorted(os.listdir()))
names = "handlers level threads cwd environ random torch_rng active_threads tf32 files".split()
changed = [name for name, a, b in zip(names, before, after) if a != b]
assert not changed, changed
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_repository_names_no_path_outside_it():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"(?<![\w.])/(work|root|opt/wheels|tmp/bash)[/\s\"']")
    wrong = [
        name
        for name in tracked
        if name != "tests/test_architecture.py"
        and (ROOT / name).suffix in {".py", ".md", ".yml", ".toml", ".txt", ".sh", ""}
        and (ROOT / name).is_file()
        and pattern.search((ROOT / name).read_text(encoding="utf-8", errors="replace"))
    ]
    assert wrong == []
