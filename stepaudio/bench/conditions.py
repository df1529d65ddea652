"""What a measurement depends on besides its flags."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path


def commit() -> str:
    """Return the commit that is measured, or "unknown" outside a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def cpu_model() -> str:
    """Return the CPU's name, from Linux's list where there is one."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def has_uncommitted_changes() -> bool:
    """Return whether the code that is measured differs from its commit; False outside a checkout."""
    command = ["git", "status", "--porcelain", "--untracked-files=no", "--", "."]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return False
    return bool(done.stdout.strip())


def load_average() -> list[float]:
    """Return how many processes wanted a core over the last 1, 5 and 15 minutes; empty where that is not known."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []
