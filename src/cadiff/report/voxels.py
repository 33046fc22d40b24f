"""Which voxels the model listens to: shares by ROI, and three projections like a glass brain.

Read from voxel_importance.tsv beside the reconstructions: voxel, rois (comma list), importance, and x, y, z where known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from scipy.spatial import ConvexHull

from cadiff.errors import DataError
from cadiff.report.charts import bar_row
from cadiff.report.figures import Scale, axis, score_ticks, tick_texts
from cadiff.report.inputs import Evaluated

NAME = "voxel_importance.tsv"
CELLS = 72
"""Dots along the longest side of a projection at most: voxels behind one another show as the most important of them."""
MOST_ROIS = 24
# x to the right, y to the front, z up, as in MNI space: (name, horizontal, vertical, letters left, right, below, above)
VIEWS = (
    ("Sagittal", "y", "z", "PAIS"),
    ("Coronal", "x", "z", "LRIS"),
    ("Axial", "x", "y", "LRPA"),
)
# Rough extent of the cerebrum in MNI152 space, mm: axis -> (lowest, highest). For an outline, nothing is computed from it.
MNI_EXTENT = {"x": (-71.0, 71.0), "y": (-106.0, 74.0), "z": (-48.0, 80.0)}


def importance(evaluated: Evaluated) -> dict[str, Any] | None:
    """What the page shows of the table; None where the reconstructions have none."""
    path = evaluated.pictures[""] / NAME
    if not path.is_file():
        return None
    table = _read(path)
    space = str(evaluated.subject.description.get("space", "")) if evaluated.subject is not None else ""
    return {"rois": _by_roi(table), "views": _projections(table, space), "count": len(table), "file": NAME}


def _read(path: Path) -> pd.DataFrame:
    table = pd.read_csv(path, sep="\t", dtype={"rois": str}, keep_default_na=False)
    if missing := [column for column in ("voxel", "rois", "importance") if column not in table]:
        raise DataError(
            f"{path} lacks the column {missing[0]!r} (it has: {', '.join(map(str, table.columns))})."
        )
    for column in ("importance", "x", "y", "z"):
        if column in table:
            table[column] = pd.to_numeric(table[column], errors="coerce")
    if not np.isfinite(table["importance"]).all():
        raise DataError(
            f"{path}: {int((~np.isfinite(table['importance'])).sum())} voxels have no importance."
        )
    return table


def _by_roi(table: pd.DataFrame) -> dict[str, Any] | None:
    """Share of the importance of every ROI beside its share of the voxels; a voxel counts in each of its ROIs."""
    members: dict[str, list[int]] = {}
    for i, entry in enumerate(table["rois"]):
        for name in {part.strip() for part in str(entry).split(",")} - {"", "nan", "n/a"}:
            members.setdefault(name, []).append(i)
    weight = table["importance"].to_numpy()
    total = float(np.abs(weight).sum())
    if not members or total == 0:
        return None
    found = [
        (name, float(weight[rows].sum()) / total, len(rows) / len(table), len(rows))
        for name, rows in members.items()
    ]
    found.sort(key=lambda row: -row[1] / row[2])
    hidden, found = max(len(found) - MOST_ROIS, 0), found[:MOST_ROIS]
    ticks = score_ticks([value for _, share, size, _ in found for value in (share, size)], True)
    scale = Scale(ticks)
    rows = []
    for name, share, size, count in found:
        title = f"{name}: {100 * share:.1f} % of the importance, {100 * size:.1f} % of the voxels"
        drawn = bar_row(scale, share, kind="brain", title=title, tick=size, height=34)
        rows.append(
            {"roi": name, "svg": drawn, "share": share, "size": size, "count": count, "ratio": share / size}
        )
    return {"rows": rows, "axis": axis(scale, tick_texts(ticks, True), "Share"), "hidden": hidden}


def _projections(table: pd.DataFrame, space: str) -> dict[str, Any] | None:
    """Sagittal, coronal and axial; None without coordinates."""
    if not {"x", "y", "z"} <= set(table):
        return None
    table = table.dropna(subset=["x", "y", "z"])
    if len(table) < 2:
        return None
    # Coordinates of a scanner or a template lie around an origin inside the head; indices of an array never go below 0.
    is_world = bool((table[["x", "y", "z"]].to_numpy() < 0).any())
    is_mni = is_world and space.upper().startswith("MNI")
    ends = {axis: (float(table[axis].min()), float(table[axis].max())) for axis in "xyz"}
    if is_mni:
        ends = {
            axis: (min(low, MNI_EXTENT[axis][0]), max(high, MNI_EXTENT[axis][1]))
            for axis, (low, high) in ends.items()
        }
    span = 1.2 * max(high - low for low, high in ends.values()) or 1.0  # one scale for all three
    strongest = float(table["importance"].abs().max()) or 1.0
    views = []
    for name, across, up, letters in VIEWS:
        frame = Frame.around(ends[across], ends[up], span)
        points = table[[across, up]].to_numpy()
        parts = [_ellipse(frame, across, up) if is_mni else _hull(frame, points)]
        parts += _dots(frame, points, table["importance"].to_numpy(), strongest)
        parts += _letters(frame, letters) if is_world else []
        drawn = Markup(
            f'<svg class="glass" viewBox="0 0 {frame.width:.2f} {frame.height:.2f}" role="img" '
            f'aria-label="{name} projection"><title>{name} projection</title>{"".join(parts)}</svg>'
        )
        views.append({"name": name, "svg": drawn, "across": across, "up": up})
    return {"views": views, "world": is_world, "mni": is_mni, "shown": len(table)}


@dataclass(frozen=True)
class Frame:
    """A window onto one projection; SVG's y runs down, so heights are turned round."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def around(cls, across: tuple[float, float], up: tuple[float, float], span: float) -> Frame:
        """A window `span` wide, as high as it needs to be."""
        height = up[1] - up[0] + 0.2 * span
        return cls(sum(across) / 2 - span / 2, sum(up) / 2 + height / 2, span, height)

    def x(self, value: float) -> float:
        """From the left edge."""
        return value - self.left

    def y(self, value: float) -> float:
        """From the upper edge."""
        return self.top - value


def _dots(frame: Frame, points: np.ndarray, weights: np.ndarray, strongest: float) -> list[str]:
    """A dot for every cell of a grid that holds voxels, of its most important one; area follows the importance."""
    cell = frame.width / CELLS
    places = np.floor(points / cell).astype(int)
    cells = pd.DataFrame({"a": places[:, 0], "b": places[:, 1], "w": weights, "size": np.abs(weights)})
    cells = cells.sort_values("size").drop_duplicates(["a", "b"], keep="last")
    parts = []
    for a, b, weight, size in cells.itertuples(index=False):
        share = float(np.sqrt(size / strongest))
        parts.append(
            f'<circle class="{"less" if weight < 0 else "more"}" cx="{frame.x((a + 0.5) * cell):.2f}" '
            f'cy="{frame.y((b + 0.5) * cell):.2f}" r="{cell * (0.2 + 0.75 * share):.2f}" '
            f'style="opacity:{0.15 + 0.75 * share:.2f}"/>'
        )
    return parts


def _letters(frame: Frame, letters: str) -> list[str]:
    """Directions at the left, the right, below and above."""
    w, h, size = frame.width, frame.height, 0.045 * frame.width
    places = (
        (0.01 * w, h / 2, "start"),
        (0.99 * w, h / 2, "end"),
        (w / 2, h - 0.2 * size, "middle"),
        (w / 2, size, "middle"),
    )
    return [
        f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" style="font-size:{size:.2f}px">{letter}</text>'
        for letter, (x, y, anchor) in zip(letters, places, strict=True)
    ]


def _ellipse(frame: Frame, across: str, up: str) -> str:
    """The brain's rough extent in MNI space."""
    (x1, x2), (y1, y2) = MNI_EXTENT[across], MNI_EXTENT[up]
    return (
        f'<ellipse class="outline" cx="{frame.x((x1 + x2) / 2):.2f}" cy="{frame.y((y1 + y2) / 2):.2f}" '
        f'rx="{(x2 - x1) / 2:.2f}" ry="{(y2 - y1) / 2:.2f}"/>'
    )


def _hull(frame: Frame, points: np.ndarray) -> str:
    """The outline of all voxels; nothing where they lie in a line."""
    points = np.unique(points, axis=0)
    if len(points) < 3 or np.linalg.matrix_rank(points - points[0]) < 2:
        return ""
    corners = points[ConvexHull(points).vertices]
    there = " ".join(f"{frame.x(x):.2f},{frame.y(y):.2f}" for x, y in corners)
    return f'<polygon class="outline" points="{there}"/>'
