"""The charts of the page: dots with intervals, bars, scores of every image, curves. Built of the pieces in `figures`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from cadiff.report.figures import Scale, drawing, line, nice_ticks, rectangle, stretched, text


@dataclass(frozen=True)
class Points:
    """One line of a `line_chart`."""

    kind: str
    """CSS class."""
    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    titles: Sequence[str]
    """What the pointer is told about each point."""


@dataclass(frozen=True)
class Band:
    """A level across a `line_chart` with its interval."""

    kind: str
    name: str
    mean: float
    low: float
    high: float


def interval_row(
    scale: Scale,
    mean: float,
    interval: Sequence[float] | None,
    *,
    kind: str,
    title: str,
    chance: float | None = None,
    mispaired: float | None = None,
    guide: float | None = None,
    height: int = 46,
) -> Markup:
    """One row of a dot-and-interval chart: a dot at the mean, a bar for the interval, marks for chance.

    `kind` is the row's CSS class (its condition's role); `guide` draws a thin line down the rows, to compare with. Rows
    of one scale stack into a chart; the grid lines meet.
    """
    middle = height / 2
    parts = [line(scale(t), 0, scale(t), height, "grid") for t in scale.ticks]
    if guide is not None:
        parts.append(line(scale(guide), 0, scale(guide), height, "guide"))
    if chance is not None:
        parts.append(line(scale(chance), 0, scale(chance), height, "chance"))
    if mispaired is not None:
        x = scale(mispaired)
        parts.append(line(x, middle - 7, x, middle + 7, "mispaired"))
    if interval is not None:
        parts += _whisker(scale, interval, middle)
    parts.append(f'<circle class="dot" cx="{scale(mean):.2f}%" cy="{middle:g}" r="6.5"/>')
    return drawing(parts, height, f"interval {kind}", title)


def bar_row(
    scale: Scale,
    value: float,
    *,
    kind: str,
    title: str,
    interval: Sequence[float] | None = None,
    guides: Sequence[tuple[str, float]] = (),
    tick: float | None = None,
    height: int = 26,
) -> Markup:
    """One bar from 0 with its interval; `guides` (CSS class, value) run down all rows, `tick` marks this one."""
    middle, thick = height / 2, 14
    parts = [line(scale(t), 0, scale(t), height, "grid") for t in scale.ticks]
    parts.append(rectangle(scale(0.0), middle - thick / 2, scale(value), thick, "fill"))
    parts += [line(scale(at), 0, scale(at), height, name) for name, at in guides]
    if tick is not None:
        parts.append(line(scale(tick), middle - thick / 2 - 3, scale(tick), middle + thick / 2 + 3, "mark"))
    if interval is not None:
        parts += _whisker(scale, interval, middle)
    return drawing(parts, height, f"interval bars {kind}", title)


def shares(
    scale: Scale, pieces: Sequence[tuple[str, float, float]], interval: Sequence[float], title: str
) -> Markup:
    """A bar in pieces (CSS class, from, to) with the interval of its end."""
    height, middle = 54, 27
    parts = [line(scale(t), 0, scale(t), height, "grid") for t in scale.ticks]
    parts += [
        rectangle(scale(start), middle - 13, scale(end), 26, f"piece {kind}") for kind, start, end in pieces
    ]
    parts += _whisker(scale, interval, middle)
    return drawing(parts, height, "interval brain shares", title)


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
    parts, y = _levels(ticks, labels, height, left, top, bottom)
    n = len(scores[0][2])
    radius = 5 if n <= 60 else 3
    where = [left + (100 - left) * (i + 0.5) / n for i in range(n)]
    main = scores[0][2]
    other = np.mean([values for _, _, values in scores[1:]], axis=0) if len(scores) > 1 else main
    for x, a, b in zip(where, main, other, strict=True):
        parts.append(line(x, y(a), x, y(float(b)), "stem"))
    for kind, name, values in reversed(list(scores)):
        dots = [
            f'<circle cx="{x:.2f}%" cy="{y(v):.1f}" r="{radius}"/>'
            for x, v in zip(where, values, strict=True)
        ]
        parts.append(f'<g class="{kind}"><title>{Markup.escape(name)}</title>{"".join(dots)}</g>')
    return drawing(parts, height, "images", title)


def line_chart(
    lines: Sequence[Points],
    ticks: Sequence[float],
    labels: Sequence[str],
    *,
    title: str,
    x_name: str,
    bands: Sequence[Band] = (),
) -> Markup:
    """Scores with intervals against a count (repeats, training trials), which runs logarithmically.

    Args:
        lines: the points; their x above 0.
        ticks: vertical grid, lowest first; labels: their texts.
        title: for screen readers; x_name: under the axis.
        bands: levels to compare with, with their intervals.
    """
    height, left, top, bottom = 300, 7.0, 14, 44
    parts, y = _levels(ticks, labels, height, left, top, bottom)
    values = sorted({float(x) for found in lines for x in found.x})
    low, high = np.log(values[0]), np.log(values[-1])
    span = float(high - low) or 1.0
    margin = 0.04

    def share(value: float) -> float:
        if high == low:
            return 0.5
        return margin + (1 - 2 * margin) * float(np.log(value) - low) / span

    def x(value: float) -> float:
        return left + (100 - left) * share(value)

    for band in bands:
        parts.append(
            f'<g class="{band.kind}"><title>{Markup.escape(band.name)}</title>'
            f'<rect class="band" x="{left}%" y="{y(band.high):.1f}" width="{100 - left}%" '
            f'height="{max(y(band.low) - y(band.high), 0.5):.1f}"/>'
            f"{line(left, y(band.mean), 100, y(band.mean), 'level')}</g>"
        )
    shown = _apart([x(value) for value in values], 5.0)
    for value, kept in zip(values, shown, strict=True):
        if kept:
            parts.append(text(x(value), height - bottom + 18, f"{value:,.10g}", "middle"))
    parts.append(text((left + 100) / 2, height - 6, x_name, "middle"))
    for found in lines:
        points = [(share(a), y(b) - top) for a, b in zip(found.x, found.y, strict=True)]
        inner = [stretched(points, left, top, height - top - bottom, "course")] if len(points) > 1 else []
        for a, b, lower, upper, told in zip(
            found.x, found.y, found.low, found.high, found.titles, strict=True
        ):
            at = x(a)
            inner.append(line(at, y(lower), at, y(upper), "bar"))
            inner.append(
                f'<circle class="dot" cx="{at:.2f}%" cy="{y(b):.1f}" r="5.5"><title>{Markup.escape(told)}</title></circle>'
            )
        parts.append(f'<g class="{found.kind}">{"".join(inner)}</g>')
    return drawing(parts, height, "lines", title)


def loss_curve(steps: Sequence[float], values: Sequence[float], *, title: str, log: bool = False) -> Markup:
    """A training curve with its smoothed course; `log` for a logarithmic vertical axis."""
    height, left, top, bottom = 190, 13.0, 10, 26
    x, y = np.asarray(steps, float), np.asarray(values, float)
    course = _smooth(y)
    if log:
        y, course = np.log10(np.maximum(y, 1e-12)), np.log10(np.maximum(course, 1e-12))
    # A few wild first steps must not flatten the rest.
    bounds = np.quantile(y, [0.0, 0.985]) if len(y) > 50 else np.array([y.min(), y.max()])
    ticks = nice_ticks(float(bounds[0]), float(bounds[1]), 4)
    labels = [f"{10**tick if log else tick:.3g}" for tick in ticks]
    parts, level = _levels(ticks, labels, height, left, top, bottom)
    for step, anchor, at in ((x[0], "start", left), (x[-1], "end", 100.0)):
        parts.append(text(at, height - 7, f"{step:,.0f}", anchor))
    span = (x[-1] - x[0]) or 1.0
    for kind, path in (("raw", y), ("course", course)):
        shown = np.clip(path, ticks[0], ticks[-1])
        points = [((a - x[0]) / span, level(b) - top) for a, b in zip(x, shown, strict=True)]
        parts.append(stretched(points, left, top, height - top - bottom, kind))
    return drawing(parts, height, "curve", title)


def _levels(ticks: Sequence[float], labels: Sequence[str], height: int, left: float, top: int, bottom: int):
    """Horizontal grid with its labels, and the function from a value to its height in pixels."""
    low, high = ticks[0], ticks[-1]

    def y(value: float) -> float:
        return top + (height - top - bottom) * (1 - (min(max(value, low), high) - low) / (high - low))

    parts = [line(left, y(tick), 100, y(tick), "grid") for tick in ticks]
    parts += [text(left - 0.8, y(tick) + 4, name, "end") for tick, name in zip(ticks, labels, strict=True)]
    return parts, y


def _whisker(scale: Scale, interval: Sequence[float], middle: float) -> list[str]:
    low, high = (scale(v) for v in interval)
    caps = [line(end, middle - 5, end, middle + 5, "cap") for end in (low, high)]
    return [line(low, middle, high, middle, "bar"), *caps]


def _apart(positions: Sequence[float], gap: float) -> list[bool]:
    """Which labels can stand without touching; the last one always does."""
    kept = [False] * len(positions)
    limit = float("inf")
    for i in reversed(range(len(positions))):
        if positions[i] <= limit:
            kept[i], limit = True, positions[i] - gap
    return kept


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over a twentieth of the curve, shorter at the ends."""
    half = max(1, len(values) // 40)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    first, last = np.maximum(index - half, 0), np.minimum(index + half + 1, len(values))
    return (total[last] - total[first]) / (last - first)
