"""Templates and style to one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from cadiff import __version__
from cadiff.artifacts import atomic_path, refuse_existing
from cadiff.report import facts


def page_path(out: Path) -> Path:
    """`out` itself where it ends in .html, else report.html in it; refused when it is there already."""
    page = out if out.suffix == ".html" else out / "report.html"
    refuse_existing(page)
    return page


def write_page(template: str, context: Mapping[str, Any], page: Path) -> Path:
    """Renders one of `templates/` into a page that stands alone; autoescaped, and unknown names are errors."""
    engine = jinja2.Environment(
        loader=jinja2.PackageLoader("cadiff.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("number", "interval", "points", "p_text", "plural", "capital"):
        engine.filters[name] = getattr(facts, name)
    # a global, so that macros see it too
    engine.globals["stamp"] = context.get("stamp", "")
    style = resources.files("cadiff.report") / "templates" / "style.css"
    html = engine.get_template(template).render(
        {**context, "version": __version__, "style": Markup(style.read_text(encoding="utf-8"))}
    )
    with atomic_path(page) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return page
