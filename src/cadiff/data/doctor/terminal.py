"""The diagnosis as a table for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cadiff.data.doctor.findings import Diagnosis, Finding, Verdict

if TYPE_CHECKING:
    from rich.console import Group
    from rich.text import Text

SIGNS: dict[Verdict, tuple[str, str]] = {
    "wrong": ("✗ wrong", "bold red"),
    "warning": ("! warning", "yellow"),
    "note": ("· note", "cyan"),
    "ok": ("✓ ok", "green"),
    "not applicable": ("– not asked", "dim"),
}


def show(diagnosis: Diagnosis) -> Group:
    """Verdict, findings (the serious ones first) with what to do, noise ceilings by ROI."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    about = diagnosis.about
    head = Text(f"{about['name']}, {about['subject']}  ({diagnosis.folder})")
    size = f"{about['trials']:,} trials x {about['voxels']:,} voxels, {about['stimuli']:,} stimuli"
    table = Table(
        "verdict",
        "check",
        "found",
        title=None,
        show_lines=False,
        pad_edge=False,
        box=None,
        padding=(0, 2, 0, 0),
    )
    for finding in diagnosis.worst_first():
        sign, style = SIGNS[finding.verdict]
        table.add_row(Text(sign, style=style), Text(finding.title), _told(finding))
    parts = [head, Text(size), Text(), table]
    if known := [row for row in diagnosis.rois if row.get("known")]:
        rois = Table(
            "ROI", "voxels", "noise ceiling: median", "quartiles", "at zero", box=None, padding=(0, 2, 0, 0)
        )
        for row in known:
            low, high = row["quartiles"]
            numbers = (f"{row['median']:.2f}", f"{low:.2f} to {high:.2f}", f"{row['at_zero']:.0%}")
            rois.add_row(str(row["roi"]), f"{row['voxels']:,}", *numbers)
        parts += [Text(), rois]
    style = SIGNS[diagnosis.verdict if diagnosis.verdict != "note" else "ok"][1]
    return Group(*parts, Text(), Text(f"{diagnosis.summary()} ({diagnosis.seconds:.0f} s)", style=style))


def _told(finding: Finding) -> Text:
    from rich.text import Text

    told = Text(finding.found, style="dim" if finding.verdict == "not applicable" else "")
    if finding.sample and finding.verdict != "not applicable":
        told.append(f" [{finding.sample}]", style="dim")
    if finding.do and finding.verdict in ("note", "warning", "wrong"):
        told.append(f"\n→ {finding.do}", style="" if finding.verdict == "note" else "bold")
    return told
