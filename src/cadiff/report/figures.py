"""Drawings of the page: inline SVG made here, and pictures as data URIs. No plotting library, no external
resource.

Horizontal positions are percentages, vertical ones pixels, so a drawing fills any width and its text keeps
its size. Colours are CSS classes of page.html.j2; light and dark come from there.
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


def picture_uri(picture: np.ndarray) -> str:
    """A picture uint8 (H, W, 3) as a PNG data URI."""
    image = Image.fromarray(picture)
    if max(image.size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from at or below `low` to at or above `high`."""
    if not high > low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


class Scale:
    """Maps values to percent of the width, with a margin for dots at either end."""

    def __init__(self, ticks: Sequence[float], margin: float = 2.0) -> None:
        self.ticks = list(ticks)
        self._low, self._high, self._margin = ticks[0], ticks[-1], margin

    def __call__(self, value: float) -> float:
        """Percent of the width."""
        share = (value - self._low) / (self._high - self._low)
        return self._margin + (100 - 2 * self._margin) * min(max(share, 0.0), 1.0)


def interval_row(
    scale: Scale,
    mean: float,
    interval: Sequence[float],
    *,
    kind: str,
    title: str,
    chance: float | None = None,
    mispaired: float | None = None,
    height: int = 46,
) -> Markup:
    """One row of a dot-and-interval chart: a dot at the mean, a bar for the interval, marks for chance.

    `kind` is the row's CSS class (its condition's role). Rows of one scale stack into a chart; the grid lines
    meet.
    """
    middle = height / 2
    parts = [_line(scale(t), 0, scale(t), height, "grid") for t in scale.ticks]
    if chance is not None:
        parts.append(_line(scale(chance), 0, scale(chance), height, "chance"))
    if mispaired is not None:
        x = scale(mispaired)
        parts.append(_line(x, middle - 7, x, middle + 7, "mispaired"))
    low, high = (scale(v) for v in interval)
    parts.append(_line(low, middle, high, middle, "bar"))
    for end in (low, high):
        parts.append(_line(end, middle - 5, end, middle + 5, "cap"))
    parts.append(f'<circle class="dot" cx="{scale(mean):.2f}%" cy="{middle:g}" r="6.5"/>')
    return _svg(parts, height, f"interval {kind}", title)


def axis(scale: Scale, labels: Sequence[str], title: str, height: int = 30) -> Markup:
    """The tick labels under a stack of `interval_row`."""
    parts = [_line(scale(t), 0, scale(t), 5, "grid") for t in scale.ticks]
    parts += [_text(scale(tick), 21, text, "middle") for tick, text in zip(scale.ticks, labels, strict=True)]
    return _svg(parts, height, "axis", title)


def per_image_chart(
    scores: Sequence[tuple[str, str, Sequence[float]]],
    ticks: Sequence[float],
    labels: Sequence[str],
    title: str,
) -> Markup:
    """Every image a column, conditions as dots, images in the order given (sorted by the caller).

    Args:
        scores: (CSS class, name, one value an image) per condition; all of one length.
        ticks: vertical grid, lowest first; labels: their texts.
        title: for screen readers.
    """
    height, left, top, bottom = 260, 6.0, 12, 14
    low, high = ticks[0], ticks[-1]

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (value - low) / (high - low))

    parts = []
    for tick, text in zip(ticks, labels, strict=True):
        parts.append(_line(left, y(tick), 100, y(tick), "grid"))
        parts.append(_text(left - 0.8, y(tick) + 4, text, "end"))
    n = len(scores[0][2])
    radius = 5 if n <= 60 else 3
    where = [left + (100 - left) * (i + 0.5) / n for i in range(n)]
    main = scores[0][2]
    other = np.mean([values for _, _, values in scores[1:]], axis=0) if len(scores) > 1 else main
    for x, a, b in zip(where, main, other, strict=True):
        parts.append(_line(x, y(a), x, y(float(b)), "stem"))
    for kind, name, values in reversed(list(scores)):
        dots = [
            f'<circle cx="{x:.2f}%" cy="{y(v):.1f}" r="{radius}"/>'
            for x, v in zip(where, values, strict=True)
        ]
        parts.append(f'<g class="{kind}"><title>{Markup.escape(name)}</title>{"".join(dots)}</g>')
    return _svg(parts, height, "images", title)


def curve(steps: Sequence[float], values: Sequence[float], *, title: str, log: bool = False) -> Markup:
    """A training curve with its smoothed course; `log` for a logarithmic vertical axis."""
    height, left, top, bottom = 190, 13.0, 10, 26
    x, y = np.asarray(steps, float), np.asarray(values, float)
    course = _smooth(y)
    if log:
        y, course = np.log10(np.maximum(y, 1e-12)), np.log10(np.maximum(course, 1e-12))
    # A few wild first steps must not flatten the rest.
    bounds = np.quantile(y, [0.0, 0.985]) if len(y) > 50 else np.array([y.min(), y.max()])
    ticks = nice_ticks(float(bounds[0]), float(bounds[1]), 4)
    low, high = ticks[0], ticks[-1]
    inner = height - top - bottom
    parts = []
    for tick in ticks:
        level = top + inner * (1 - (tick - low) / (high - low))
        parts.append(_line(left, level, 100, level, "grid"))
        parts.append(_text(left - 1.5, level + 4, f"{10**tick if log else tick:.3g}", "end"))
    for step, anchor, at in ((x[0], "start", left), (x[-1], "end", 100.0)):
        parts.append(_text(at, height - 7, f"{step:,.0f}", anchor))
    span = (x[-1] - x[0]) or 1.0
    for kind, line in (("raw", y), ("course", course)):
        shown = np.clip(line, low, high)
        points = " ".join(
            f"{1000 * (a - x[0]) / span:.1f},{inner * (1 - (b - low) / (high - low)):.1f}"
            for a, b in zip(x, shown, strict=True)
        )
        parts.append(
            f'<svg x="{left}%" y="{top}" width="{100 - left}%" height="{inner}" viewBox="0 0 1000 {inner}" '
            f'preserveAspectRatio="none"><polyline class="{kind}" points="{points}"/></svg>'
        )
    return _svg(parts, height, "curve", title)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the curve, shorter at the ends."""
    half = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.2f}%" y1="{y1:.1f}" x2="{x2:.2f}%" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.2f}%" y="{y:.1f}" text-anchor="{anchor}">{Markup.escape(text)}</text>'


def _svg(parts: Sequence[str], height: int, kind: str, title: str) -> Markup:
    name = Markup.escape(title)
    return Markup(
        f'<svg class="{kind}" width="100%" height="{height}" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )
