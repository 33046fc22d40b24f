"""evaluation.json, put together: what is on record of an evaluation, all of it plain values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cadiff.artifacts import provenance
from cadiff.evaluate import evidence, sets
from cadiff.evaluate.ledger import Record
from cadiff.evaluate.output import description_digest, relative
from cadiff.evaluate.overlap import Overlap, without
from cadiff.evaluate.scoreboard import Scoreboard, Scored
from cadiff.evaluate.summary import BRAIN, comparisons, describe, from_the_brain
from cadiff.eyes.names import judge_name

FORMAT = 1


def evaluation_record(
    board: Scoreboard,
    brain: Scored,
    *,
    description: Mapping[str, Any],
    split: str,
    looks: Record,
    overlap: Overlap | None,
    absent: Mapping[str, str],
    warnings: Mapping[str, str],
    class_names: Mapping[int, str],
    inputs: Mapping[str, Any],
) -> dict[str, Any]:
    """The whole of evaluation.json.

    Args:
        board: all conditions, scored. brain: the primary one.
        description: what the dataset says of itself. split: the one that was reconstructed.
        looks: at the test split, so far. overlap: test pictures met in training; None where training is not known.
        absent: control -> why it is not there. warnings: condition -> what its folder says against it.
        class_names: of the judge, by number. inputs: of `inputs_record`.
    """
    config, world, metrics, headline = board.config, board.world, board.metrics, board.headline
    roles = {name: str(condition["role"]) for name, condition in board.conditions.items()}
    rows = comparisons(board.per_image, metrics, board.primary, board.draws, roles)
    strongest = from_the_brain(rows, roles)
    judge = world.look.about(world.targets, world.stimuli, world.stimulus_ids)
    if judge is not None:
        judge["class_names"] = {str(number): name for number, name in class_names.items()}
    labels = {"judge": f"{judge_name(config.judge)}, pooled"} if config.judge else {}
    if "inception" in sets.spaces(world.targets):
        labels["inception"] = "Inception v3 of torchvision, avgpool"
    return {
        "kind": "evaluation",
        "format": FORMAT,
        "dataset": {"name": description.get("name"), "subject": description.get("subject")},
        "headline": {"metric": headline, "condition": board.primary},
        "metrics": {name: describe(metric) for name, metric in metrics.items()},
        "conditions": board.conditions,
        "absent": dict(absent),
        "warnings": dict(warnings),
        "comparisons": rows,
        "from_the_brain": strongest,
        "required_images": evidence.images_needed(rows, headline),
        "variance": evidence.variance(brain.samples),
        "sets": sets.record(board.distances, board.conditions, labels),
        "variants": dict(board.variants),
        "judge": judge,
        "eyes": world.look.about_eyes(),
        "pictures": {
            "height": world.size[0],
            "width": world.size[1],
            "resizing": f"stimuli{'' if config.size is None else ' and reconstructions'}: the middle part of these proportions, "
            "bicubic, antialiased, to this size",
        },
        "stimuli": {
            "evaluated": len(world.stimulus_ids),
            "in_test_split": int((world.stimuli["split"] == "test").sum()),
            "split": split,
            "training_pictures": world.num_training(config.train_pictures),
        },
        "integrity": {
            **looks.as_json(),
            "overlap": _overlap(board, overlap, strongest.get(headline, {}).get("control")),
        },
        "inputs": dict(inputs),
        "config": config.model_dump(mode="json"),
        "provenance": provenance(seed=config.seed),
    }


def inputs_record(
    opened: Mapping[str, Path], digests: Mapping[str, str], dataset: Path, out: Path
) -> dict[str, Any]:
    """Where what was scored lies, relative to `out`, and its checksums.

    Args:
        opened: folders of pictures, the first named "". digests: theirs, the first named "brain".
    """
    return {
        "reconstructions": relative(opened[""], out),
        "dataset": relative(dataset, out),
        "reconstructions_sha256": digests[BRAIN],
        "dataset_description_sha256": description_digest(dataset),
        "against": {
            name: {"folder": relative(path, out), "sha256": digests[name]}
            for name, path in opened.items()
            if name
        },
    }


def _overlap(board: Scoreboard, overlap: Overlap | None, control: str | None) -> dict[str, Any] | None:
    """What the audit found, and the headline without the stimuli concerned beside its strongest control."""
    if overlap is None:
        return None
    scores = {
        name: values[board.headline]
        for name, values in board.per_image.items()
        if name in (board.primary, control)
    }
    left = without(
        overlap.affected,
        board.world.stimulus_ids,
        board.metrics[board.headline],
        scores[board.primary],
        scores.get(control or ""),
        board.draws,
    )
    return {**overlap.as_json(), "headline_without": None if left is None else {**left, "control": control}}
