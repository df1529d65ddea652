"""A running server for tests: the real app.py in a process of its own, its log at hand."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 300
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--autoplay-policy=no-user-gesture-required"),
]


@dataclass
class Server:
    """app.py with folders of its own; start() waits until it is ready."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.folder / "server.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8")

    def start(self, *, wait: bool = True) -> Server:
        """Start the process on a free port; its log is appended to log_path."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STEPAUDIO_")}
        environment |= {
            "STEPAUDIO_MODELS_DIR": str(self.folder / "models"),
            "STEPAUDIO_CACHE_DIR": str(self.folder / "cache"),
            "STEPAUDIO_DATA_DIR": str(self.folder / "data"),
            "STEPAUDIO_PORT": str(self.port),
            "STEPAUDIO_TEMP_DIR": str(self.folder / "temporary"),
            "PYTHONUTF8": "1",
            **self.settings,
        }
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py"], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        if wait:
            self.wait_until_ready()
        return self

    def wait_until_ready(self) -> None:
        """Wait for /health/ready; raises with the log when the process ends or takes too long."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            assert self.process is not None
            assert self.process.poll() is None, f"the server ended:\n{self.log}"
            try:
                if httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        self.kill()
        raise AssertionError(f"the server was not ready in {START_SECONDS} s:\n{self.log}")

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End the process with a signal and wait for it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            self.process.wait(60)

    def cache_lines(self) -> list[str]:
        """Return HIT or MISS for each request in the log, in order."""
        return re.findall(r"FunASR cache (HIT|MISS)", self.log)
