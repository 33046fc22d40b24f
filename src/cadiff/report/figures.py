"""Drawing by hand: SVG pieces, pictures as data URIs, scales and round ticks. No plotting library, no external resource.

Horizontal positions are percentages, vertical ones pixels, so a drawing fills any width and its text keeps its size.
Colours are CSS classes of templates/style.css; light and dark come from there.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

LARGEST = 192
"""Pictures above this many pixels a side are shrunk to it for the page."""


def picture_uri(picture: np.ndarray) -> Markup:
    """A picture uint8 (H, W, 3) as a data URI: PNG, pixel for pixel; JPEG where it had to be shrunk, to keep pages small."""
    image, buffer = Image.fromarray(picture), io.BytesIO()
    kind = "png" if max(image.size) <= LARGEST else "jpeg"
    if kind == "png":
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        image.save(buffer, format="JPEG", quality=90, subsampling=0)
    return Markup(f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii"))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from at or below `low` to at or above `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def score_ticks(values: Sequence[float], percent: bool, count: int = 6) -> list[float]:
    """Ticks for scores: from 0 for percentages, which end at 100 %; around the values and 0 otherwise."""
    ends = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    ticks = nice_ticks(min(0.0, *ends), max(ends) if percent else max(0.0, *ends), count)
    return [t for t in ticks if t <= 1.0 + 1e-9] if percent and max(ends) <= 1 else ticks


def tick_texts(ticks: Sequence[float], percent: bool) -> list[str]:
    """The ticks for people, the unit on the last one only, so that narrow axes stay readable."""
    texts = [f"{100 * t if percent else t:g}".replace("-", "−") for t in ticks]
    return [*texts[:-1], f"{texts[-1]} %"] if percent else texts


class Scale:
    """Maps values to percent of the width, with a margin for dots at either end."""

    def __init__(self, ticks: Sequence[float], margin: float = 2.0) -> None:
        self.ticks = list(ticks)
        self._low, self._high, self._margin = ticks[0], ticks[-1], margin

    def __call__(self, value: float) -> float:
        """Percent of the width; values beyond the ticks stop at the ends."""
        share = (value - self._low) / (self._high - self._low)
        return self._margin + (100 - 2 * self._margin) * min(max(share, 0.0), 1.0)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A line of CSS class `kind`; x in percent, y in pixels."""
    return f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def rectangle(x1: float, y: float, x2: float, height: float, kind: str) -> str:
    """A rectangle between two percentages of the width, whichever is larger."""
    left, width = min(x1, x2), abs(x2 - x1)
    return f'<rect class="{kind}" x="{left:.2f}%" y="{y:.1f}" width="{width:.2f}%" height="{height:.1f}" rx="2"/>'


def text(x: float, y: float, content: str, anchor: str, kind: str = "") -> str:
    """A text at a percentage of the width; anchor is start, middle or end."""
    named = f' class="{kind}"' if kind else ""
    return f'<text{named} x="{x:.2f}%" y="{y:.1f}" text-anchor="{anchor}">{Markup.escape(content)}</text>'


def drawing(parts: Sequence[str], height: int, kind: str, title: str) -> Markup:
    """The pieces as one inline SVG that fills the width; the title is for screen readers and the pointer."""
    name = Markup.escape(title)
    return Markup(
        f'<svg class="{kind}" width="100%" height="{height}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def stretched(
    points: Sequence[tuple[float, float]], left: float, top: float, height: float, kind: str
) -> str:
    """A polyline through points (share of the width from `left` % to the right end, pixels below `top`)."""
    there = " ".join(f"{1000 * x:.1f},{y:.1f}" for x, y in points)
    return (
        f'<svg x="{left}%" y="{top}" width="{100 - left}%" height="{height}" viewBox="0 0 1000 {height}" '
        f'preserveAspectRatio="none"><polyline class="{kind}" points="{there}"/></svg>'
    )


def axis(scale: Scale, labels: Sequence[str], title: str, height: int = 30) -> Markup:
    """The tick labels under a stack of rows on one scale."""
    parts = [line(scale(t), 0, scale(t), 5, "grid") for t in scale.ticks]
    for tick, name in zip(scale.ticks, labels, strict=True):
        wide = tick == scale.ticks[-1] and len(name) > 5  # would run out of a narrow page
        parts.append(text(100.0 if wide else scale(tick), 21, name, "end" if wide else "middle"))
    return drawing(parts, height, "axis", title)
