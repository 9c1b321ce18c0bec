"""The page of `disa web` in a real browser, headless: seconds from the click to a picture, and a picture of the page.

Needs Chromium with its driver, and the environment of `make test-web`. Run from the repository's root:
`.venv-web/bin/python -m benchmarks.web --out assets/web.png`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from disa.commands.flags import HelpFormatter
from disa.runtime.files import atomic_write

ROOT = Path(__file__).parents[1]
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
)
PATIENCE = 120  # seconds; other processes may take the machine
Browser = Any  # selenium's, which need not be installed


def find_browser() -> tuple[str, str] | None:
    """Find a Chromium and its driver; None if this machine has none."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    return (browser, driver) if browser and driver else None


@contextlib.contextmanager
def served(folder: Path, *words: str) -> Iterator[str]:
    """Run `disa web` with `words` in `folder`; yield its address once it is there. It must end well when asked to.

    What it prints, errors too, is in `folder`/log.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if name != "RANK"}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "disa", "web", *words, "--port", str(port)],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait(lambda: address in (folder / "log").read_text() or process.poll() is not None)
        if process.poll() is not None:
            raise RuntimeError((folder / "log").read_text())
        yield address
        process.send_signal(signal.SIGTERM)
        if process.wait(PATIENCE):
            raise RuntimeError((folder / "log").read_text())
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextlib.contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Start a browser with a fresh profile in `folder`, which reaches this machine alone."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    found = find_browser()
    if found is None:
        raise RuntimeError("there is no Chromium with its driver; install the packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={folder}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(found[1]))
    try:
        browser.set_window_size(1360, 1000)
        yield browser
    finally:
        browser.quit()


def wait(condition: Callable[[], object], seconds: float = PATIENCE) -> Any:
    """Wait until `condition` is true; return what it then is. A TimeoutError says that it never was."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError("the page did not get there in time")
        time.sleep(0.02)
    return found


def all_of(browser: Browser, selector: str) -> list[Any]:
    """Elements that a CSS selector selects."""
    return list(browser.find_elements("css selector", selector))


def open_page(browser: Browser, address: str) -> None:
    """Open the page, and wait until its controls are set."""
    browser.get(address)
    value = "return document.querySelector('#label input')?.value || document.querySelector('#prompt textarea')?.value"
    wait(lambda: browser.execute_script(value))
    wait(lambda: browser.execute_script("return document.querySelector('#upper input[type=number]')?.value") != "1")


def draw(browser: Browser) -> tuple[float, float]:
    """Click on Draw: seconds to the first preview, and to both pictures."""
    browser.execute_script("document.querySelectorAll('#result img, #result b').forEach(one => one.remove())")
    start = time.perf_counter()
    all_of(browser, "#draw")[0].click()
    wait(lambda: all_of(browser, "#result img"))
    preview = time.perf_counter() - start
    wait(lambda: len(all_of(browser, "#result .numbers b")) == 4 and not all_of(browser, "#result .busy"))
    return preview, time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    text = "The page of `disa web` in a real browser: seconds from the click to a picture, and a picture of the page."
    parser = argparse.ArgumentParser(prog="benchmarks.web", description=text, formatter_class=HelpFormatter)
    parser.add_argument("--model", default="mar_fashion", help="a bundled model")
    parser.add_argument("--clicks", type=int, default=5, help="how often to draw")
    parser.add_argument("--out", type=Path, help="where to put a picture of the page, with the quickest comparison")
    args = parser.parse_args(argv)
    times: list[tuple[float, float]] = []
    best = b""
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as profile,
        served(Path(folder), args.model) as address,
        browsing(Path(profile)) as browser,
    ):
        open_page(browser, address)
        for _ in range(args.clicks):
            times.append(draw(browser))
            if times[-1][1] == min(both for _, both in times):
                best = browser.get_screenshot_as_png()
    for name, column in zip(("first preview", "both pictures"), zip(*times, strict=True), strict=True):
        middle = statistics.median(column)
        print(f"{name}: first click {column[0]:.2f} s, median {middle:.2f} s, least {min(column):.2f} s")
    print(f"{args.clicks} clicks, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if args.out:
        with atomic_write(args.out) as beside:
            beside.write_bytes(best)


if __name__ == "__main__":
    main()
