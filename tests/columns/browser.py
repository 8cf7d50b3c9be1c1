"""A real browser, as a reader of a page has it: Chromium without a window."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NOISE = re.compile(r"\[bokeh [\d.]+\] setting log level")


class Browser:
    """Chromium with a profile of its own, in the light or the dark scheme."""

    def __init__(self, profile: Path) -> None:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if found is None:
            pytest.skip("no browser on this machine, so the page is not looked at: apt-get install chromium")
        self._command = [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        self._command += [f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=8000"]

    def run(self, page: Path, *options: str, dark: bool = False) -> tuple[str, list[str]]:
        """Open a page; return stdout, and what it wrote to its console, errors and refusals of its policy included."""
        scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
        command = [*self._command, scheme, *options, page.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line and not NOISE.search(line)]
        return done.stdout, lines

    def screenshot(self, page: Path, image: Path, *, width: int = 1000, height: int = 1600, dark: bool = False) -> None:
        """Take a picture of a page; anything on its console is a failure."""
        size = f"--window-size={width},{height}"
        _, said = self.run(page, size, f"--screenshot={image}", dark=dark)
        assert not said, said
        assert image.stat().st_size > 0
