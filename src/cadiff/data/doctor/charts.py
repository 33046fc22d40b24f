"""Drawings of the page: inline SVG, and pictures as data URIs; colours are CSS classes of page.html.j2."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

LARGEST = 160  # pixels a side of pictures on the page


def picture_uri(picture: np.ndarray) -> str:
    """A picture uint8 (H, W, 3) as a data URI, shrunk to `LARGEST`; small ones keep their pixels."""
    image = Image.fromarray(picture)
    small = max(image.size) <= LARGEST
    image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "PNG" if small else "JPEG", **({"optimize": True} if small else {"quality": 85}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def histogram(counts: Sequence[int], median: float, title: str, height: int = 44) -> Markup:
    """Voxels by noise ceiling from 0 to 1: bars, and a line at the median. Bars grow with the square root of the count."""
    heights = np.sqrt(np.asarray(counts, float))
    heights *= (height - 6) / max(float(heights.max(initial=0.0)), 1.0)
    width = 100 / len(counts)
    bars = "".join(
        f'<rect class="bar" x="{i * width + 0.3:.2f}%" width="{width - 0.6:.2f}%" y="{height - h:.1f}" height="{h:.1f}"/>'
        for i, h in enumerate(heights)
        if h > 0
    )
    x = 100 * min(max(median, 0.0), 1.0)
    name = Markup.escape(title)
    return Markup(
        f'<svg width="100%" height="{height}" role="img" aria-label="{name}"><title>{name}</title>'
        f'<line class="base" x1="0" x2="100%" y1="{height - 0.5}" y2="{height - 0.5}"/>{bars}'
        f'<line class="median" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{height}"/></svg>'
    )
