"""What docker/accept.sh checks of an image; see there. Each check is one line; the first that fails ends it all."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import soundfile
from engines import USER, Buildah, Container, Engine
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 600
CLONE_SECONDS = 300
IDLE_SECONDS = float(os.environ.get("IDLE_SECONDS", "120"))
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PREFIX = r"^[\d-]+ [\d:,]+ \w+ \[\w+\] "
MISS, HIT, ENCODING, TOTAL = (
    "❌ FunASR cache MISS, encoding...",
    r"✅ FunASR cache HIT! Total: \d+\.\d{3}s \(hash: \d+\.\d{3}s, lookup: \d+\.\d{3}s\)",
    r"⏱️ FunASR encoding: \d+\.\d{3}s \(encode: \d+\.\d{3}s, merge: \d+\.\d{3}s\)",
    r"⏱️ Total time: \d+\.\d{3}s",
)
STAGES = tuple(
    rf"   - {name + ':':<13}[ \d]+\.\d{{3}}s  \(\d+\.\d%\)" for name in ("Get engine", "Clone", "Post-process")
)


class Failed(Exception):
    """A check that does not hold."""


def check(what: str, holds: object) -> None:
    """Tell a check on standard output; raises Failed where it does not hold."""
    sys.stdout.write(f"{'ok  ' if holds else 'FAIL'} {what}\n")
    sys.stdout.flush()
    if not holds:
        raise Failed(what)


def wait_until_ready(container: Container, url: str) -> tuple[float, float]:
    """Return after how many seconds the process answered and was ready."""
    start = time.monotonic()
    live = 0.0
    while time.monotonic() - start < START_SECONDS:
        try:
            live = live or (httpx.get(f"{url}/health/live", timeout=5).status_code == 200) * (time.monotonic() - start)
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return live, time.monotonic() - start
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise Failed(f"the container is not ready after {START_SECONDS} s:\n{container.logs()[-3000:]}")


def speech_like(path: Path, pitch: float) -> Path:
    """Write two seconds of gliding harmonics under a syllable envelope, and return where."""
    rate = 24000
    t = np.arange(2 * rate) / rate
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.1 * np.sin(4 * t))) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 20)) * (0.2 + 0.8 * np.clip(np.sin(19 * t), 0, 1))
    soundfile.write(path, (0.2 * tone).astype(np.float32), rate)
    return path


def clone(page: Page, recording: Path) -> str:
    """Clone through the page, as a user would, and return what the page reports."""
    clear = page.locator("#reference button[aria-label='Clear'], #reference button[title='Clear']")
    if clear.count():
        clear.first.click()
    page.locator("#reference input[type=file]").set_input_files(str(recording))
    page.locator("#reference").get_by_text(recording.name).or_(page.locator("#reference #waveform")).first.wait_for()
    page.locator("#transcript textarea").fill("The words of the recording.")
    page.locator("#text textarea").fill("And these are to be spoken.")
    consent = page.locator("#consent input")
    if consent.count() and consent.is_visible():
        consent.check()
    before = page.locator("#run").inner_text()
    page.locator("#generate").click()
    page.wait_for_function(
        "before => { const run = document.querySelector('#run'), error = document.querySelector('#error');"
        "return (run && run.innerText.includes('RTF') && run.innerText !== before) || (error && error.innerText); }",
        arg=before,
        timeout=CLONE_SECONDS * 1000,
    )
    error = page.locator("#error")
    if error.count() and error.is_visible():
        raise Failed(f"the page says: {error.inner_text()}")
    return page.locator("#run").inner_text()


def opened(browser: Browser, url: str) -> Page:
    """Return the page, ready to be used."""
    page = browser.new_context(locale="en-GB").new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.locator("#generate").wait_for()
    return page


def cache_lines(log: str) -> list[str]:
    """Return HIT or MISS for each request of a log."""
    return re.findall(r"FunASR cache (HIT|MISS)", log)


def accept_image(container: Container) -> None:
    """Look at the image itself."""
    settings = container.configuration()
    check(f"the image's user is {USER}", settings["User"] == f"{USER}:{USER}")
    check("an init is the first process", str(settings["Entrypoint"]).startswith("['tini'"))
    check("its health is asked for", "health/ready" in str(settings.get("Healthcheck")))
    check("it runs as this user", container.inside("id", "-u") == str(USER))
    script = (
        "import importlib.metadata as m; print(sorted(d.name for d in m.distributions() if 'onnxruntime' in d.name))"
    )
    check("there is one onnxruntime", len(json.loads(container.inside("python", "-c", script).replace("'", '"'))) == 1)
    script = "import shutil; print([c for c in ('gcc', 'cc', 'g++', 'clang', 'make', 'cmake') if shutil.which(c)])"
    check("there is no compiler", container.inside("python", "-c", script) == "[]")
    script = "import os; print([p for p in ('/app', '/app/stepaudio', '/opt/venv', '/etc') if os.access(p, os.W_OK)])"
    found = container.inside("python", "-c", script)
    check(f"the program cannot change itself (writable: {found})", found == "[]")
    sys.stdout.write(f"     size of the image: {container.size() / 1e9:.2f} GB\n")


def accept_requests(container: Container, url: str, browser: Browser, a: Path, b: Path) -> None:
    """Two voices, restarts and kills: what was encoded once is never encoded again."""
    container.start()
    live, ready = wait_until_ready(container, url)
    check(f"it answers after {live:.1f} s and is ready after {ready:.1f} s", live <= ready)
    page = opened(browser, url)
    check("the first clone of A misses", "miss" in clone(page, a))
    check("the first clone of B misses", "miss" in clone(page, b))
    check("the second clone of A hits", "hit" in clone(page, a))
    time.sleep(IDLE_SECONDS)
    last = container.logs().splitlines()[-30:]
    for name, pattern in {"MISS": MISS, "encoding": ENCODING, "HIT": HIT}.items():
        found = [line for line in last if re.search(PREFIX + pattern + "$", line)]
        check(f"after {IDLE_SECONDS:g} s the log's last 30 lines hold the line {name}", len(found) == 1)
    for pattern in (TOTAL, *STAGES):
        found = [line for line in last if re.search(PREFIX + pattern + "$", line)]
        check(f"and both lines {pattern.split(':')[0].strip()!r}", len(found) == 2)
    sys.stdout.write("".join(f"     | {line}\n" for line in last))

    check("asked to end, it ends with status 0", container.stop() == 0)
    check("and says that nothing was lost", "Stopping: nothing is left to do." in container.logs())
    container.start()
    wait_until_ready(container, url)
    check("after a restart A hits", "hit" in clone(opened(browser, url), a))
    container.kill()
    container.start()
    wait_until_ready(container, url)
    check("after kill -9 B hits", "hit" in clone(opened(browser, url), b))
    check("the log tells the same", cache_lines(container.logs()) == ["MISS", "MISS", "HIT", "HIT", "HIT"])
    check("and no traceback", "Traceback" not in container.logs())


def accept_unwritable_cache(container: Container, url: str, browser: Browser, a: Path) -> None:
    """A cache that cannot be written costs speed, and is told."""
    container.start()
    wait_until_ready(container, url)
    page = opened(browser, url)
    banner = page.locator("#banner").get_by_text(re.compile("cache", re.IGNORECASE)).first
    banner.wait_for()
    check("with an unwritable cache the page says so", "cannot be written" in banner.inner_text())
    check("and clones all the same", "miss" in clone(page, a))
    warnings = [line for line in container.logs().splitlines() if "WARNING" in line and "cache" in line]
    check("and the log warns", warnings)


def main(engine: str, image: str) -> int:
    """Run all checks and return the exit status."""
    folder = Path(tempfile.mkdtemp(prefix="stepaudio-acceptance-"))
    folder.chmod(0o755)  # the image's user must come through to its cache
    models = Path(os.environ.get("MODELS") or ROOT / "models").resolve()

    def container(name: str, writable: bool = True) -> tuple[Container, str]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        made: Container
        if engine == "buildah":
            made = Buildah(image, models, port, folder / name, writable)
        else:
            made = Engine(engine, image, models, port, writable, f"step-audio-ui-opt-{name}-{port}")
        return made, f"http://127.0.0.1:{port}"

    def run(name: str, accept: Callable[..., None], *given: object, writable: bool = True) -> None:
        made, url = container(name, writable)
        try:
            accept(made, url, *given)
        except Failed:
            sys.stdout.write(made.logs()[-6000:])
            raise
        finally:
            made.remove()

    a, b = speech_like(folder / "a.wav", 110), speech_like(folder / "b.wav", 190)
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        run("image", lambda made, url: accept_image(made))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            run("requests", accept_requests, browser, a, b)
            run("unwritable", accept_unwritable_cache, browser, a, writable=False)
            browser.close()
    except Failed as error:
        sys.stdout.write(f"\nNot accepted: {error}\n")
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sys.stdout.write("\nAccepted.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
