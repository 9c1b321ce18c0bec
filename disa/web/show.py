"""Panels and sentences as HTML; pictures are in it, and no file is written."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from collections.abc import Sequence

from PIL import Image

from .asking import WITH, WITHOUT
from .drawing import Panel

# What the library calls a setting -> what the page does.
WORDS = {
    "StepSchedule.upper": "the first count",
    "StepSchedule.lower": "the last count",
    "StepSchedule.strategy": "the strategy",
    "below lower =": "below the last count",
    "upper must be at least lower": "the first must be at least the last",
    "Guidance.scale": "the guidance scale",
    "num_iter": "the number of AR steps",
    "seeds is": "the seeds are",
}
SMALL = 128  # narrower pictures, in pixels, are enlarged without smoothing
EMPTY = [Panel(WITH, 0), Panel(WITHOUT, 0)]


def data_url(image: Image.Image) -> str:
    """Put a picture into an address, as a PNG."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def panels(shown: Sequence[Panel]) -> str:
    """Write panels side by side, and below them what DiSA saves."""
    figures = "".join(_figure(number, panel) for number, panel in enumerate(shown))
    return f'<div class="pair">{figures}</div><p class="verdict">{_verdict(shown)}</p>'


def wrong(message: object) -> str:
    """Write one sentence on what is wrong, in the page's words."""
    text = str(message)
    for theirs, ours in WORDS.items():
        text = re.sub(rf"(?<!\w){re.escape(theirs)}(?!\w)", ours, text)
    return f'<p class="wrong" role="alert">{html.escape(text)}</p>'


def note(message: str) -> str:
    """Write a sentence that is worth knowing; nothing for nothing."""
    return f'<p class="note">{html.escape(message)}</p>' if message else ""


def _figure(number: int, panel: Panel) -> str:
    columns = max(1, math.ceil(math.sqrt(len(panel.images))))
    pictures = "".join(
        f'<img src="{data_url(image)}" alt="{html.escape(panel.title)}, picture {i + 1}" '
        f'data-panel="{number}" data-index="{i}">'
        for i, image in enumerate(panel.images)
    )
    state = " busy" * (panel.step > 0 and panel.seconds is None)
    state += " small" * any(image.width < SMALL for image in panel.images)
    return (
        f'<figure class="panel{state}"><figcaption>{html.escape(panel.title)}</figcaption>'
        f'<div class="pictures" style="--columns: {columns}">{pictures or "<div></div>"}</div>'
        f'<p class="numbers">{_numbers(panel)}</p></figure>'
    )


def _numbers(panel: Panel) -> str:
    if panel.nfe is not None and panel.seconds is not None:
        return (
            f"<span><b>{panel.nfe}</b> network evaluations per picture (NFE)</span>"
            f"<span><b>{panel.seconds:.1f}</b> seconds</span>"
        )
    if panel.steps:
        return f"<span>AR step {panel.step} of {panel.steps}</span>"
    return ""


def _verdict(shown: Sequence[Panel]) -> str:
    """Say what DiSA saves, once both panels are done."""
    found = [(one.nfe, one.seconds) for one in shown if one.nfe and one.seconds]
    if len(found) < 2:
        return "&nbsp;"
    (few, fast), (many, slow) = found
    evaluations = f"{abs(1 - few / many):.0%} {'fewer' if few <= many else 'more'} network evaluations"
    time = f"{slow / fast:.1f} times as fast" if fast <= slow else f"{fast / slow:.1f} times as slow"
    return f"From the same seeds, DiSA took {evaluations} and was {time}."
