"""The diagnosis as one HTML page that stands alone."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from cadiff.artifacts import atomic_path
from cadiff.data.doctor.charts import histogram, picture_uri
from cadiff.data.doctor.findings import SEVERITY, Diagnosis, plain, version
from cadiff.data.doctor.folder import Folder, open_folder
from cadiff.data.files import inside, load_picture
from cadiff.errors import ArtifactError, DataError

MOST_PAIRS = 24
GENERATOR = '<meta name="generator" content="cadiff data doctor">'
HEADLINES = {
    "wrong": "Do not train on this yet",
    "warning": "Usable, after a look",
    "note": "Healthy",
    "ok": "Healthy",
}


def write_page(diagnosis: Diagnosis, path: Path) -> Path:
    """Writes the page to a file, over an older page of the doctor.

    Raises:
        ArtifactError: the file exists and is something else.
    """
    import jinja2

    refuse_foreign(path)
    template = (resources.files("cadiff") / "data" / "doctor" / "page.html.j2").read_text(encoding="utf-8")
    engine = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters["code"] = _code
    html = engine.from_string(template).render(_context(diagnosis))
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def refuse_foreign(path: Path) -> None:
    """Raises `ArtifactError` unless the file is absent, or an older result of the doctor."""
    if not path.exists():
        return
    start = "" if path.is_dir() else path.read_bytes()[:400].decode("utf-8", errors="replace")
    if GENERATOR not in start and '"kind": "diagnosis"' not in start:
        raise ArtifactError(f"{path} exists and is no diagnosis: choose another name or remove it.")


def _context(diagnosis: Diagnosis) -> dict[str, Any]:
    findings = diagnosis.worst_first()
    return {
        "version": version(),
        "generator": GENERATOR,
        "about": diagnosis.about,
        "verdict": diagnosis.verdict if diagnosis.verdict in ("wrong", "warning") else "ok",
        "headline": HEADLINES[diagnosis.verdict],
        "summary": diagnosis.summary(),
        "alarms": [finding for finding in findings if finding.verdict in ("wrong", "warning")],
        "groups": [
            {
                "verdict": verdict,
                "findings": [
                    {
                        "about": f,
                        "details": json.dumps(plain(f.details), indent=1, ensure_ascii=False)
                        if f.details
                        else "",
                    }
                    for f in findings
                    if f.verdict == verdict
                ],
            }
            for verdict in sorted(SEVERITY, key=lambda verdict: -SEVERITY[verdict])
        ],
        "rois": [_roi(row) for row in diagnosis.rois if row.get("known")],
        "pairs": _pairs(diagnosis),
        "num_pairs": len(diagnosis.pairs),
        "against": diagnosis.against,
        "seed": diagnosis.seed,
        "seconds": diagnosis.seconds,
        "folder": diagnosis.folder.name,
    }


def _code(text: str) -> Markup:
    """Words between back quotes as code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if number % 2 else Markup.escape(part)
        for number, part in enumerate(parts)
    )


def _roi(row: dict[str, Any]) -> dict[str, Any]:
    low, high = row["quartiles"]
    title = f"{row['roi']}: noise ceilings of {row['known']} voxels, median {row['median']:.2f}"
    return {
        "name": row["roi"],
        "voxels": row["voxels"],
        "median": f"{row['median']:.2f}",
        "quartiles": f"{low:.2f} to {high:.2f}",
        "at_zero": f"{row['at_zero']:.0%}",
        "split_half": f"{row['split_half']:.2f}" if "split_half" in row else "",
        "svg": histogram(row["histogram"], row["median"], title),
    }


def _pairs(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    if not diagnosis.pairs:
        return []
    folder = open_folder(diagnosis.folder)
    return [
        {
            "test": _picture(folder, pair.test),
            "train": _picture(folder, pair.train),
            "similarity": "same file" if pair.similarity >= 1 else f"similarity {pair.similarity:.2f}",
        }
        for pair in diagnosis.pairs[:MOST_PAIRS]
    ]


def _picture(folder: Folder, name: str) -> dict[str, str]:
    try:
        picture = load_picture(inside(folder.path / "stimuli", str(folder.stimuli.at[name, "file"])))
    except (DataError, KeyError):
        return {"name": name, "uri": ""}
    return {"name": name, "uri": picture_uri(picture)}
