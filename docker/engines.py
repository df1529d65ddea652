"""A container to start, stop, kill and start again: with Docker or podman, or with buildah where there is no engine.

buildah runs the image's own command as its own user in its own file system, but knows no volumes, no ports and no
read-only root: the volume is a folder that belongs to the image's user, and the network is the machine's.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

NAME = "step-audio-ui-opt-acceptance"
USER = 10001
PORT = 7860


def said(*command: str) -> str:
    """Return what a command writes; its failure is an error that shows it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


class Container(Protocol):
    """One container of the image; what it wrote into its volumes outlives it until remove()."""

    def start(self) -> None: ...
    def stop(self) -> int:
        """Ask it to end, and return its exit status."""

    def kill(self) -> None:
        """End the program as kill -9 does."""

    def logs(self) -> str: ...
    def inside(self, *command: str) -> str:
        """Return what a command writes that runs in a container of the image, as the image's user."""

    def configuration(self) -> dict[str, object]:
        """Return the image's configuration: User, Entrypoint, Cmd, Healthcheck, ..."""

    def size(self) -> int:
        """Return the bytes of the image."""

    def remove(self) -> None: ...


@dataclass
class Engine:
    """Docker or podman. writable: whether the cache can be written."""

    program: str
    image: str
    models: Path
    port: int
    writable: bool = True
    name: str = NAME
    _made: bool = False

    def start(self) -> None:
        if self._made:
            said(self.program, "start", self.name)
            return
        said(self.program, "volume", "create", self.name)
        cache = f"{self.name}:/app/cache" + ("" if self.writable else ":ro")
        options = ["--name", self.name, "--publish", f"127.0.0.1:{self.port}:{PORT}", "--read-only", "--tmpfs", "/tmp"]
        options += ["--volume", f"{self.models}:/app/models:ro", "--volume", cache, "--cap-drop", "ALL"]
        said(self.program, "run", "--detach", *options, self.image)
        self._made = True

    def stop(self) -> int:
        said(self.program, "stop", "--time", "60", self.name)
        return int(said(self.program, "inspect", "--format", "{{.State.ExitCode}}", self.name))

    def kill(self) -> None:
        said(self.program, "kill", "--signal", "KILL", self.name)

    def logs(self) -> str:
        done = subprocess.run([self.program, "logs", self.name], capture_output=True, text=True, check=False)
        return done.stdout + done.stderr

    def inside(self, *command: str) -> str:
        return said(self.program, "run", "--rm", "--entrypoint", command[0], self.image, *command[1:])

    def configuration(self) -> dict[str, object]:
        return dict(json.loads(said(self.program, "image", "inspect", self.image))[0]["Config"])

    def size(self) -> int:
        return int(json.loads(said(self.program, "image", "inspect", self.image))[0]["Size"])

    def remove(self) -> None:
        subprocess.run([self.program, "rm", "--force", self.name], capture_output=True, check=False)
        subprocess.run([self.program, "volume", "rm", "--force", self.name], capture_output=True, check=False)


@dataclass
class Buildah:
    """buildah with chroot isolation, as root."""

    image: str
    models: Path
    port: int
    folder: Path
    writable: bool = True
    program: list[str] = field(default_factory=lambda: shlex.split(os.environ.get("BUILDAH", "buildah")))
    _container: str = ""
    _process: subprocess.Popen[bytes] | None = None

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def start(self) -> None:
        self._make()
        cache = self.folder / "cache"
        if not cache.exists():
            cache.mkdir(parents=True)
            if self.writable:
                os.chown(cache, USER, USER)
        settings = self.configuration()
        command = [*_words(settings["Entrypoint"]), *_words(settings["Cmd"])]
        options = ["--isolation", "chroot", "--volume", f"{self.models}:/app/models:ro"]
        options += ["--volume", f"{cache}:/app/cache", "--env", f"STEPAUDIO_PORT={self.port}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self.program, "run", *options, self._container, "--", *command],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> int:
        assert self._process is not None
        os.kill(self._first(), signal.SIGTERM)
        return self._process.wait(90)

    def kill(self) -> None:
        assert self._process is not None
        for process in self._family()[::-1]:
            os.kill(process, signal.SIGKILL)
        self._process.wait(30)

    def logs(self) -> str:
        return self._log.read_text(encoding="utf-8") if self._log.exists() else ""

    def inside(self, *command: str) -> str:
        self._make()
        return said(*self.program, "run", "--isolation", "chroot", self._container, "--", *command)

    def configuration(self) -> dict[str, object]:
        found = json.loads(said(*self.program, "inspect", "--type", "image", self.image))
        return dict(found["Docker"]["config"])

    def size(self) -> int:
        self._make()
        mounted = Path(said(*self.program, "mount", self._container))
        try:
            return int(said("du", "--summarize", "--bytes", "--one-file-system", str(mounted)).split()[0])
        finally:
            said(*self.program, "umount", self._container)

    def remove(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill()
        if self._container:
            subprocess.run([*self.program, "rm", self._container], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._container:
            self._container = said(*self.program, "from", "--pull-never", self.image)

    def _family(self) -> list[int]:
        """Return the processes below buildah's own that run as the image's user, the oldest first."""
        assert self._process is not None
        found, waiting = [], [self._process.pid]
        while waiting:
            parent = waiting.pop(0)
            # Of every thread, because buildah starts its processes from any of them.
            for children in Path(f"/proc/{parent}/task").glob("*/children"):
                waiting += [int(child) for child in children.read_text().split()]
            if parent != self._process.pid and Path(f"/proc/{parent}").stat().st_uid == USER:
                found.append(parent)
        return found

    def _first(self) -> int:
        """Return the process that a container engine would call the first: the image's entry point."""
        end = time.monotonic() + 30
        while time.monotonic() < end:
            for process in self._family():
                if Path(f"/proc/{process}/comm").read_text().strip() == "tini":
                    return process
            time.sleep(0.2)
        raise RuntimeError("the container has no tini")


def _words(value: object) -> list[str]:
    return [str(word) for word in value] if isinstance(value, list) else []
