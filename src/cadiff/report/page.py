"""`cadiff report`: one HTML page that stands alone, from an evaluation folder and what it points to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cadiff.report import card, conditions, facts, parts, trust, voxels
from cadiff.report.gallery import MAX_BRAIN, MAX_OTHER, Gallery
from cadiff.report.inputs import Evaluated, open_evaluated
from cadiff.report.notes import notes
from cadiff.report.render import page_path, write_page


def report(
    evaluation: Path,
    out: Path,
    *,
    runs: Sequence[Path] | None = None,
    reconstructions: Path | None = None,
    dataset: Path | None = None,
    seed: int = 0,
) -> Path:
    """Writes the page and returns its path.

    It answers in this order: what was decoded, how good, compared with what, can I trust it. Sections whose numbers an
    evaluation does not hold are left out.

    Args:
        evaluation: folder of `evaluate`. It records where reconstructions and dataset lie, relative to
            itself. out: a path that ends in .html, or a folder in which report.html is made. runs: folders of
            training stages whose curves are shown; default: those beside the evaluation. reconstructions,
            dataset: their folders, where they were moved since. seed: of the random choice of stimuli in the
            gallery.

    Raises:
        ArtifactError: not an evaluation, the page exists, or the pictures are gone or changed since they were
            scored.
    """
    page = page_path(Path(out))
    evaluated = open_evaluated(Path(evaluation), reconstructions=reconstructions, dataset=dataset)
    folders = card.find_runs(evaluated.folder) if runs is None else [Path(run) for run in runs]
    return write_page("page.html.j2", _context(evaluated, folders, seed), page)


def _context(evaluated: Evaluated, runs: Sequence[Path], seed: int) -> dict[str, Any]:
    scores, subject = evaluated.scores, evaluated.subject
    gallery = Gallery(evaluated, seed)
    shows, sentence = facts.verdict(scores)
    found = notes(scores, subject)
    condition = scores["conditions"][evaluated.primary]
    return {
        "scores": scores,
        "stamp": facts.stamp(scores),
        "simulated": subject is not None and bool(subject.description.get("simulated")),
        "subject": scores["dataset"].get("subject") or "one subject",
        "dataset_name": scores["dataset"].get("name") or evaluated.dataset.name,
        "created": str(scores["provenance"].get("created", ""))[:10],
        "shows": shows,
        "verdict": sentence,
        "others": facts.other_metrics(scores),
        "headline": {
            "about": scores["metrics"][evaluated.metric],
            "score": condition["metrics"][evaluated.metric],
            "condition": condition,
        },
        "first": gallery.first(),
        "serious": [note for note in found if note.serious],
        "notes": found,
        "strip": conditions.strip(evaluated),
        "absent": conditions.absent(evaluated),
        "share": conditions.brain_share(evaluated),
        "table": conditions.table(evaluated),
        "best_of": conditions.best_of(evaluated),
        "per_image": gallery.chart(),
        "parts": {
            "curve": parts.repeats_curve(evaluated, seed),
            "rois": parts.roi_bars(evaluated),
            "voxels": voxels.importance(evaluated),
        },
        "groups": gallery.groups(),
        "overlap": trust.overlap(evaluated),
        "category_bias": trust.category_bias(evaluated),
        "sets": trust.sets(evaluated),
        "category_scores": trust.category_scores(evaluated),
        "seeds": trust.seeds(evaluated),
        "required": trust.required(evaluated),
        "ledger": card.ledger(evaluated),
        "data_facts": card.data_facts(evaluated),
        "curves": card.loss_curves(runs),
        "protocols": [score["protocol"] for score in condition["metrics"].values()],
        "card": card.run_card(evaluated, runs),
        "smooth": scores["pictures"]["width"] >= 48,
        "seed": seed,
        "max_brain": MAX_BRAIN,
        "max_other": MAX_OTHER,
    }
