"""The control groups by which Linux limits a process, in a container or in a service of systemd."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = "sys/fs/cgroup"


def control_groups(controller: str, root: Path = Path("/")) -> Iterator[Path]:
    """Yield the folders of the groups whose limits hold for this process: its own and those around it.

    controller: what is limited, "cpu" or "memory". root: the folder in which proc and sys lie. Not every folder need
    be there: within a container the path may be the host's, of which only the last one, the root, is to be seen.
    """
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # The second version has one tree, the first one for each controller, under its name or with those it shares.
        if controllers and controller not in controllers.split(","):
            continue
        trees = [f"{CGROUPS}/{name}" for name in dict.fromkeys((controller, controllers))] if controllers else [CGROUPS]
        for tree in trees:
            for group in (PurePosixPath(path), *PurePosixPath(path).parents):
                yield root / tree / str(group).lstrip("/")


def read(path: Path) -> str:
    """Return what stands in a file, "" where there is none that may be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
