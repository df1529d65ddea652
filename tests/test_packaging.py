"""Dockerfile, docker-compose.yml and the requirements: what must hold for the image and for every platform."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stepaudio.memory import WORKING_BYTES
from stepaudio.server import SHUTDOWN_SECONDS
from stepaudio.settings import PREFIX, Settings
from tests.conftest import ROOT

PLATFORMS = {
    "linux-x86_64": {"sys_platform": "linux", "platform_machine": "x86_64", "platform_system": "Linux"},
    "linux-aarch64": {"sys_platform": "linux", "platform_machine": "aarch64", "platform_system": "Linux"},
    "macos-arm64": {"sys_platform": "darwin", "platform_machine": "arm64", "platform_system": "Darwin"},
}


# Requirements.


def requirements(path: Path) -> list[Requirement]:
    """Return the requirements of a file, without those of files that it includes."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


RUN_TIME = requirements(ROOT / "requirements.txt")
TESTS = requirements(ROOT / "tests" / "requirements.txt")


@pytest.mark.parametrize("requirement", [*RUN_TIME, *TESTS], ids=str)
def test_every_requirement_is_pinned_to_one_version(requirement):
    assert [specifier.operator for specifier in requirement.specifier] == ["=="]
    assert "*" not in str(requirement.specifier)


def test_nothing_is_required_twice():
    names = [canonicalize_name(requirement.name) for requirement in (*RUN_TIME, *TESTS)]
    assert len(names) == len(set(names))


def test_the_tests_need_all_that_the_product_needs():
    assert "-r ../requirements.txt" in (ROOT / "tests/requirements.txt").read_text(encoding="utf-8").splitlines()
    assert not {r.name for r in RUN_TIME} & {r.name for r in TESTS}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_platform_gets_exactly_one_onnxruntime(platform):
    chosen = [
        requirement.name
        for requirement in RUN_TIME
        if requirement.name.startswith("onnxruntime")
        and (requirement.marker is None or requirement.marker.evaluate(PLATFORMS[platform]))
    ]
    assert chosen == ["onnxruntime-gpu" if platform == "linux-x86_64" else "onnxruntime"]


def test_both_onnxruntimes_have_the_same_version():
    assert len({str(r.specifier) for r in RUN_TIME if r.name.startswith("onnxruntime")}) == 1


def test_no_installed_package_brings_an_onnxruntime_of_its_own():
    demanding = [
        distribution.name
        for distribution in importlib.metadata.distributions()
        for text in distribution.requires or []
        if (requirement := Requirement(text)).name.lower().replace("_", "-").startswith("onnxruntime")
        and not distribution.name.lower().startswith("onnxruntime")
        and (requirement.marker is None or requirement.marker.evaluate({"extra": ""}))
    ]
    assert demanding == []
    names = {distribution.name.lower() for distribution in importlib.metadata.distributions()}
    assert len({name for name in names if name in ("onnxruntime", "onnxruntime-gpu")}) == 1


@pytest.mark.parametrize("requirement", [*RUN_TIME, *TESTS], ids=lambda requirement: requirement.name)
def test_what_is_tested_is_what_is_pinned(requirement):
    if requirement.marker is None or requirement.marker.evaluate():
        installed = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(installed.split("+")[0])


def imported(paths: list[Path]) -> set[str]:
    """Return the top-level names that the files import."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


OPTIONAL = {"bitsandbytes", "triton"}
"""What only a setting asks for, and what torch brings along where it has CUDA; the absence of either is one sentence,
see tests/test_variants.py and tests/test_llm_fused.py."""


def test_every_library_that_the_product_imports_is_a_requirement():
    distributions = importlib.metadata.packages_distributions()
    declared = {canonicalize_name(requirement.name) for requirement in RUN_TIME}
    missing = {
        name
        for name in imported([ROOT / "app.py", *(ROOT / "stepaudio").rglob("*.py")])
        - sys.stdlib_module_names
        - OPTIONAL
        if name != "stepaudio" and not {canonicalize_name(d) for d in distributions.get(name, ["?"])} & declared
    }
    assert missing == set()


# Dockerfile.


@dataclass(frozen=True)
class Stage:
    name: str
    parent: str
    instructions: tuple[tuple[str, str], ...]


def read_stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name; comments left out, continued lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    name = ""
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            parent, _, name = rest.partition(" AS ")
            stages[name] = Stage(name, parent, ())
        elif name:
            old = stages[name]
            stages[name] = Stage(name, old.parent, (*old.instructions, (keyword, rest.strip())))
    return stages


STAGES = read_stages()
IMAGES = ["cpu", "cuda"]


def whole(name: str) -> list[tuple[str, str]]:
    """Return all instructions that an image is made of, those of the stages below it first."""
    stage = STAGES[name]
    return [*(whole(stage.parent) if stage.parent in STAGES else []), *stage.instructions]


def last(name: str, keyword: str) -> str:
    return [rest for word, rest in whole(name) if word == keyword][-1]


def test_the_default_image_is_the_one_that_runs_everywhere():
    assert list(STAGES)[-1] == "cpu"


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_does_not_run_as_root(image):
    assert last(image, "USER") == "10001:10001"
    assert any("useradd --uid 10001" in rest for word, rest in whole(image) if word == "RUN")


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_reports_its_readiness(image):
    assert "/health/ready" in last(image, "HEALTHCHECK")
    assert "127.0.0.1" in last(image, "HEALTHCHECK")


@pytest.mark.parametrize("image", IMAGES)
def test_libraries_are_copied_before_the_source(image):
    copies = [rest for word, rest in whole(image) if word == "COPY"]
    assert copies == [f"--from=libraries-{image} /opt/venv /opt/venv", "--chmod=755 . ."]


@pytest.mark.parametrize("image", IMAGES)
def test_libraries_depend_on_the_requirements_alone_and_use_a_pip_cache(image):
    steps = whole(f"libraries-{image}")
    assert [rest for word, rest in steps if word == "COPY"] == ["requirements.txt ./"]
    installing = [rest for word, rest in steps if word == "RUN" and "pip install" in rest]
    assert all(rest.startswith("--mount=type=cache,target=/var/cache/pip") for rest in installing)
    assert installing[-1].endswith("pip install --requirement requirements.txt")


def test_only_the_image_whose_kernels_are_built_where_they_run_holds_a_compiler():
    """Triton calls it; see stepaudio/llm/fused.py."""
    compiler = re.compile(r"\bgcc\b|build-essential|clang|cmake")
    assert not compiler.search(" ".join(rest for _, rest in whole("cpu")))
    (installing,) = [rest for word, rest in whole("cuda") if word == "RUN" and compiler.search(rest)]
    assert "install --yes --no-install-recommends gcc libc6-dev" in installing


def test_what_triton_builds_can_be_written_and_executed_by_any_user():
    """In a tmpfs Docker lets nothing be executed unless asked to; /tmp, which holds what users sent, stays so."""
    (folder,) = [rest.partition("TRITON_CACHE_DIR=")[2] for word, rest in whole("cuda") if "TRITON_CACHE_DIR" in rest]
    assert any(f"install --directory --mode=1777 {folder}" in rest for word, rest in whole("cuda") if word == "RUN")
    temporary = dict(entry.split(":", 1) for entry in COMPOSE["services"]["step-audio-ui-opt-gpu"]["tmpfs"])
    assert "exec" in temporary[folder].split(",")
    assert "exec" not in temporary["/tmp"].split(",")
    assert folder not in str(COMPOSE["services"]["step-audio-ui-opt"])


def test_only_the_cpu_image_takes_torch_from_the_cpu_index():
    assert "TORCH_CPU_INDEX_URL" in str(STAGES["libraries-cpu"].instructions)
    assert "TORCH_CPU_INDEX_URL" not in str(whole("libraries-cuda"))


def test_the_cpu_image_installs_the_pinned_torch():
    steps = " ".join(rest for word, rest in whole("libraries-cpu") if word == "RUN")
    command = re.search(r"\$\((grep [^)]*)\)", steps)
    assert command
    found = subprocess.run(["sh", "-c", command[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [found.strip()] == [str(requirement) for requirement in RUN_TIME if requirement.name == "torch"]


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_starts_the_app_and_listens_for_the_world_outside(image):
    assert last(image, "CMD") == '["python", "app.py"]'
    assert last(image, "EXPOSE") == str(Settings.model_fields["port"].default)
    environment = " ".join(rest for word, rest in whole(image) if word == "ENV")
    for setting in ("STEPAUDIO_HOST=0.0.0.0", "PYTHONUNBUFFERED=1", "PYTHONUTF8=1", "GRADIO_ANALYTICS_ENABLED=False"):
        assert setting in environment


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_in_the_image_reports_to_anybody(image):
    environment = " ".join(rest for word, rest in whole(image) if word == "ENV").split()
    assert {"ORT_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_TELEMETRY=1", "DO_NOT_TRACK=1"} <= set(environment)


class Health(BaseHTTPRequestHandler):
    """Answers every request with one status, as the product does while loading (503) and when ready (200)."""

    status = 200
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_health_check_of_the_image_follows_readiness(monkeypatch, status, healthy):
    """The very command of the Dockerfile; a proxy of the environment must not come between."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setattr(Health, "status", status)
    monkeypatch.setattr(Health, "asked", [])
    server = HTTPServer(("127.0.0.1", 0), Health)
    thread = threading.Thread(target=server.handle_request, daemon=True)
    thread.start()
    monkeypatch.setenv("STEPAUDIO_PORT", str(server.server_address[1]))
    command = json.loads(last("cpu", "HEALTHCHECK").partition("CMD ")[2])
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, timeout=20, check=False)
    thread.join(5)
    server.server_close()
    assert Health.asked == ["/health/ready"]
    assert (done.returncode == 0) is healthy


def test_the_health_check_fails_where_nobody_listens(monkeypatch):
    monkeypatch.setenv("STEPAUDIO_PORT", "1")
    command = json.loads(last("cpu", "HEALTHCHECK").partition("CMD ")[2])
    assert subprocess.run([sys.executable, *command[1:]], capture_output=True, check=False).returncode != 0


def ignored(path: str) -> bool:
    """Return whether .dockerignore leaves the path out: the last pattern that matches it or a folder above it."""
    answer = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.lstrip("!")
        expression = re.escape(pattern).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{expression}(/.*)?", path):
            answer = not line.startswith("!")
    return answer


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("app.py", False),
        ("requirements.txt", False),
        ("stepaudio/pipeline.py", False),
        ("models/mini/Step-Audio-EditX/config.json", False),
        ("models/step-audio-editx/Step-Audio-EditX/model.safetensors", True),
        ("cache/cache.db", True),
        ("stepaudio/__pycache__/pipeline.cpython-311.pyc", True),
        (".git/config", True),
        (".env", True),
        ("tests/conftest.py", True),
        (".venv/bin/python", True),
    ],
)
def test_only_what_runs_gets_into_the_image(path, answer):
    assert ignored(path) is answer


# docker-compose.yml.


COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVERS = {"step-audio-ui-opt": "cpu", "step-audio-ui-opt-gpu": "cuda"}


@pytest.mark.parametrize("name", SERVERS)
def test_operators_find_the_container_under_its_name(name):
    assert COMPOSE["services"][name]["container_name"] == "step-audio-ui-opt"


def test_the_cpu_is_the_default_and_the_gpu_a_profile():
    assert "profiles" not in COMPOSE["services"]["step-audio-ui-opt"]
    gpu = COMPOSE["services"]["step-audio-ui-opt-gpu"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["deploy"]["resources"]["reservations"]["devices"][0]["capabilities"] == ["gpu"]
    assert [name for name, service in COMPOSE["services"].items() if "profiles" not in service] == ["step-audio-ui-opt"]


@pytest.mark.parametrize(("name", "target"), SERVERS.items())
def test_each_service_builds_its_image(name, target):
    assert COMPOSE["services"][name]["build"]["target"] == target
    assert target in STAGES
    assert set(COMPOSE["services"][name]["build"]["args"]) == {"PIP_INDEX_URL", "TORCH_CPU_INDEX_URL"}


@pytest.mark.parametrize("name", SERVERS)
def test_models_are_read_only_and_what_is_to_be_kept_lies_in_named_volumes(name):
    models, *volumes = COMPOSE["services"][name]["volumes"]
    assert models == "./models:/app/models:ro"
    folders = dict(volume.split(":") for volume in volumes)
    assert folders == {"cache": "/app/cache", "data": "/app/data", "compiled": "/app/compiled"}
    assert set(folders) == set(COMPOSE["volumes"])
    # A new volume takes over the owner of the image's folder.
    making = " && ".join(rest for word, rest in whole(SERVERS[name]) if word == "RUN")
    (made,) = re.findall(r"install --directory --owner=10001 --group=10001 ([^&]*)", making)
    assert set(made.split()) == set(folders.values())
    environment = " ".join(rest for word, rest in whole(SERVERS[name]) if word == "ENV").split()
    assert f"NUMBA_CACHE_DIR={folders['compiled']}" in environment


@pytest.mark.parametrize("name", SERVERS)
def test_no_setting_of_the_operator_makes_the_container_unreachable(name):
    """What stands under environment counts before what an env_file says."""
    service = COMPOSE["services"][name]
    assert service["environment"] == {"STEPAUDIO_HOST": "0.0.0.0", "STEPAUDIO_PORT": "7860"}
    assert service["ports"] == ["${BIND_ADDRESS:-127.0.0.1}:${PUBLISHED_PORT:-7860}:7860"]


@pytest.mark.parametrize("name", SERVERS)
def test_the_log_cannot_fill_the_disk(name):
    logging = COMPOSE["services"][name]["logging"]
    assert logging["driver"] == "json-file"
    assert {"max-size", "max-file"} <= set(logging["options"])


@pytest.mark.parametrize("name", SERVERS)
def test_the_service_survives_a_restart_and_ends_politely(name):
    service = COMPOSE["services"][name]
    assert service["restart"] == "unless-stopped"
    drain = Settings.model_fields["drain_seconds"].default
    # After the accepted jobs come open connections, and the end of what had to be cancelled.
    assert int(service["stop_grace_period"].removesuffix("s")) >= drain + SHUTDOWN_SECONDS + 10


@pytest.mark.parametrize("image", IMAGES)
def test_a_small_init_is_the_first_process(image):
    assert json.loads(last(image, "ENTRYPOINT")) == ["tini", "-g", "--"]
    assert any(re.search(r"install .*\btini\b", rest) for word, rest in whole(image) if word == "RUN")


@pytest.mark.parametrize("name", SERVERS)
def test_nothing_but_volumes_and_temporary_files_can_be_written(name):
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    (temporary,) = [entry for entry in service["tmpfs"] if entry.startswith("/tmp:")]
    # Room for all uploads and batches, and some for what libraries keep there.
    size = int(re.search(r"size=\$\{TMP_SIZE:-(\d+)g\}", temporary)[1]) * 1024
    assert size > sum(Settings.model_fields[name].default for name in ("temp_megabytes", "batches_megabytes"))
    assert service["cap_drop"] == ["ALL"]
    assert service["pids_limit"] > 100
    assert "MEMORY_LIMIT" in service["mem_limit"]


def test_the_memory_of_the_real_weights_is_told_as_it_is_reckoned():
    """As memory.needed() does, from the sizes at the hub: 8.3 GB with the model's 3.53 billion numbers, and 1.41 GB."""
    files, numbers = 8.3e9 - 7.06e9 + 1.41e9, 3.53e9
    half, whole = (files + numbers * size + WORKING_BYTES for size in (2, 4))
    text = " ".join((ROOT / ".env.example").read_text(encoding="utf-8").replace("#", "").split())
    assert f"about {half / 1e9:.0f} GB in bfloat16 and {whole / 1e9:.0f} GB in float32" in text
    for name in SERVERS:
        limit = int(re.search(r"MEMORY_LIMIT:-(\d+)g", COMPOSE["services"][name]["mem_limit"])[1]) * 2**30
        assert limit > whole


def test_the_example_of_settings_names_only_what_is_read():
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    names = set(re.findall(r"^#?([A-Z_]+)=", text, re.MULTILINE))
    compose = set(re.findall(r"\$\{([A-Z_]+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert names <= known | compose
    assert {"BIND_ADDRESS", "MEMORY_LIMIT", "STEPAUDIO_LOGIN"} <= names
    assert all(line.startswith("#") or not line for line in text.splitlines())  # nothing is set unasked


def test_the_download_can_write_the_models_and_nothing_runs_beside_it():
    service = COMPOSE["services"]["download"]
    assert service["volumes"] == ["./models:/app/models"]
    assert service["entrypoint"] == ["tini", "--", "python", "-m", "stepaudio", "download"]
    assert service["profiles"] == ["download"]
    assert service["healthcheck"] == {"disable": True}


def test_only_settings_that_exist_are_set():
    text = "".join(
        line
        for name in ("Dockerfile", "docker-compose.yml", ".env.example")
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines(keepends=True)
    )
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert set(re.findall(r"\bSTEPAUDIO_[A-Z_]+", text)) <= known


@pytest.mark.parametrize("folder", ["models", "cache"])
def test_the_data_folders_explain_themselves(folder):
    assert (ROOT / folder / "README.md").read_text(encoding="utf-8").strip()
