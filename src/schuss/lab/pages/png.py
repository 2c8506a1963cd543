"""A figure as a PNG file: by Plotly's own export where it is installed, else by a browser without a window."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from schuss.lab.pages.atomic_write import write
from schuss.lab.pages.words import inline_json

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync disable-dev-shm-usage hide-scrollbars use-angle=swiftshader "
    "enable-unsafe-swiftshader"
)
PATIENCE = 120  # seconds


def picture(figure: dict[str, Any], path: Path, width: int = 1200, height: int = 800) -> None:
    """Write a Plotly figure (a dict of data and layout) to a PNG file of so many pixels.

    Raises:
        RuntimeError: there is nothing here that can draw it; says what to install.
        OSError: the file cannot be written.
    """
    if importlib.util.find_spec("kaleido") is not None:
        import plotly.io

        write(path, plotly.io.to_image(figure, format="png", width=width, height=height))
        return
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise RuntimeError(
            f"{path} cannot be drawn: neither Plotly's export nor a browser is here. Try: pip install "
            "kaleido, or "
            "install Chromium; or open the HTML file and take a picture there."
        )
    _by_browser(browser, figure, path, width, height)


def _by_browser(browser: str, figure: dict[str, Any], path: Path, width: int, height: int) -> None:
    # The size is the figure's own: what a browser gives its window may be less than was asked for.
    drawn = {**figure, "layout": {**figure["layout"], "width": width, "height": height}}
    with tempfile.TemporaryDirectory(prefix="schuss-") as folder:
        page = Path(folder) / "figure.html"
        page.write_text(
            "<!DOCTYPE html><meta charset='utf-8'><body style='margin:0;background:#fff'><div "
            "id='plot'></div>"
            f"<script>{get_plotlyjs()}</script><script>const f = {inline_json(drawn)};"
            "Plotly.newPlot('plot', f.data, f.layout, {staticPlot: true});</script>",
            encoding="utf-8",
        )
        shot = Path(folder) / "figure.png"
        command = [
            browser,
            *(f"--{flag}" for flag in FLAGS.split()),
            f"--user-data-dir={folder}/profile",
            f"--window-size={width},{height}",
            "--virtual-time-budget=10000",
            f"--screenshot={shot}",
            page.as_uri(),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(
                f"{browser} did not draw {path} in {PATIENCE} s. Try: pip install kaleido"
            ) from error
        if not shot.exists():
            last = done.stderr.strip().splitlines()[-1:] or ["it gave no reason"]
            raise RuntimeError(f"{browser} did not draw {path}: {last[0]}. Try: pip install kaleido")
        write(path, shot.read_bytes())
