"""`cadiff evaluate`: a folder of reconstructions and its dataset in, evaluation.json and score tables out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import pandas as pd

from cadiff.artifacts import dataset_digest, folder_digest, new_folder, refuse_existing, write_json
from cadiff.errors import ConfigError, DataError
from cadiff.evaluate.circular import choosers, refuse_circular
from cadiff.evaluate.features import pool_sizes
from cadiff.evaluate.judging import Judge
from cadiff.evaluate.ledger import no_look, record_look
from cadiff.evaluate.metrics import metric_table
from cadiff.evaluate.output import image_table, read_description, write_table
from cadiff.evaluate.overlap import audit
from cadiff.evaluate.pictures import Reconstructions, open_stimuli, stimulus_images
from cadiff.evaluate.record import evaluation_record, inputs_record
from cadiff.evaluate.scoreboard import Scoreboard, Scored
from cadiff.evaluate.scores import Protocol
from cadiff.evaluate.settings import EvaluateConfig
from cadiff.evaluate.summary import BRAIN, Draws
from cadiff.evaluate.systems import open_systems
from cadiff.evaluate.training_pictures import World, class_mean, means, picture_controls
from cadiff.eyes.names import judge_name


def evaluate(
    config: EvaluateConfig,
    reconstructions: Path,
    dataset: Path,
    out: Path,
    *,
    against: Mapping[str, Path] | None = None,
    pattern: str | None = None,
    table: Path | None = None,
    progress: bool = True,
) -> Path:
    """Scores every condition of a folder of reconstructions against the stimuli that were seen.

    Writes into the new folder `out`:
        evaluation.json    means, intervals, chance, comparisons with the controls, protocol, judge, provenance; `inputs`
                           holds the paths of the folders relative to `out`, for the report's pictures (`cadiff.evaluate.record`)
        per_image.tsv      one row a condition and stimulus: every metric, mean over samples
        per_sample.tsv     one row a picture: every metric, and the judge's first class with its name

    The headline of a metric is the mean over samples, then over images, with an interval over images. The best of the k
    samples of every image stands apart as `best_of`; it rises with k for any decoder and compares with nothing else.

    Args:
        config: what is measured, and how.
        reconstructions: a folder of `cadiff reconstruct` or `cadiff baseline`, or anyone's folder of pictures
            (`cadiff.evaluate.folders` says how they are told apart).
        dataset: a dataset folder, or a folder of pictures named after their stimuli.
        out: the folder to make; it must not exist.
        against: further systems by name, compared with the first over the same images; their brain condition counts.
        pattern, table: how the files of plain folders are named.

    Raises:
        ArtifactError: wrong folders, or `out` exists. DataError: pictures missing or unreadable, unequal samples, or
            systems that show other stimuli. ConfigError: an unknown judge or headline, a judge that had a say in the
            pictures, a name that is taken, or an n-way that the judge's classes do not allow.
    """
    reconstructions, dataset, out = Path(reconstructions), Path(dataset), Path(out)
    refuse_existing(out)
    stimuli = open_stimuli(dataset)
    opened = {"": reconstructions, **{name: Path(folder) for name, folder in (against or {}).items()}}
    systems = open_systems(opened, stimuli, pattern=pattern, table=table, subset=config.subset)
    folders = {system.origin: system.folder for system in systems}
    for found in folders.values():
        refuse_circular(config, choosers(found.about), found.folder)
    folder = systems[0].folder
    ids = folder.stimulus_ids
    if len(ids) < 2:
        raise DataError(
            f"{reconstructions} holds one stimulus; intervals and identification need at least two."
        )

    description = read_description(dataset)
    split = (folder.about.get("config") or {}).get("split", "test")
    if split == "test":
        _refuse_trained(folder, stimuli, dataset, _elsewhere(folder, description))

    look = Judge(
        config.judge, config.classes, eyes=config.eyes, batch_size=config.batch_size, progress=progress
    )
    judge = judge_name(config.judge) if config.judge else None
    pools = pool_sizes(len(ids), config.retrieval_pools)
    metrics = metric_table(
        config.n_way, config.top_k, judge, classes=config.classes, pools=pools, eyes=look.metrics
    )
    headline = config.headline or (next(iter(metrics)) if judge else "pcc")
    if headline not in metrics:
        raise ConfigError(f"evaluate.headline is {headline!r}; there are {', '.join(metrics)}.")

    first = systems[0].images(config.size)
    size = (int(first.shape[2]), int(first.shape[3]))
    classes = np.array(config.classes) if config.classes else None
    protocol = Protocol(config.n_way, config.top_k, classes, pools if judge else (), look.distances)
    targets = look(stimulus_images(stimuli, ids, size))
    names = [system.condition for system in systems]
    board = Scoreboard(
        config,
        World(stimuli, ids, size, look, targets, protocol),
        metrics,
        headline,
        primary=BRAIN if BRAIN in names else names[0],
        prefix=f"{description.get('name', dataset.name)}/{description.get('subject', 'subject')}",
        draws=Draws(config.num_bootstrap, config.seed),
        variants=folder.about.get("variants") or {},
    )
    kept: dict[str, Scored] = {}
    for system in systems:
        scored = board.drawn(system)
        if system.condition == board.primary:  # pictures and features of all of them might not fit
            kept[board.primary] = scored
    brain = kept[board.primary]
    absent = _controls(board, brain)
    samples = pd.concat(board.tables)
    class_names: dict[int, str] = {}
    if targets.logits is not None:
        classes_seen = sorted({*targets.logits.argmax(axis=1), *samples["judge_class"]})
        class_names = look.class_names(classes_seen, stimuli)
        samples["judge_class_name"] = samples["judge_class"].map(class_names)

    digests = {name or BRAIN: folder_digest(path) for name, path in opened.items()}
    remarks = {name: [text] for name, text in board.blank.items()}
    for origin, found in folders.items():
        if text := _elsewhere(found, description):
            remarks.setdefault(origin or board.primary, []).append(text)
    for name, texts in remarks.items():
        warn(f"{name}: {'; '.join(texts)}.", stacklevel=2)
    for origin, found in folders.items():  # what their makers were told already
        if text := (found.about.get("config") or {}).get("warning"):
            remarks.setdefault(origin or board.primary, []).append(text)
    evaluation = evaluation_record(
        board,
        brain,
        description=description,
        split=split,
        looks=record_look(
            dataset, digests, selected_on=config.selected_on, resplit=description.get("resplit")
        )
        if split == "test"
        else no_look(config.selected_on),
        overlap=audit(stimuli, ids, seed=config.seed) if split == "test" else None,
        absent=absent,
        warnings={name: "; ".join(texts) for name, texts in remarks.items()},
        class_names=class_names,
        inputs=inputs_record(opened, digests, dataset, out),
    )
    with new_folder(out) as temporary:
        write_json(temporary / "evaluation.json", evaluation)
        write_table(samples, temporary / "per_sample.tsv")
        write_table(image_table(systems, board.per_image), temporary / "per_image.tsv")
    return out


def _elsewhere(folder: Reconstructions, description: Mapping[str, Any]) -> str | None:
    """What to say of pictures that name another dataset than this one as theirs; None where they do not."""
    drawn_from = ((folder.about.get("provenance") or {}).get("inputs") or {}).get("dataset")
    if drawn_from is None or "sha256" not in description or drawn_from == dataset_digest(description):
        return None
    return "drawn from another dataset than the one they are scored on, by the digest in their config.json"


def _refuse_trained(
    folder: Reconstructions, stimuli: pd.DataFrame, dataset: Path, elsewhere: str | None
) -> None:
    """Raises `DataError` where no stimulus that is scored as a test stimulus is one, and some were trained on."""
    shown = stimuli.loc[folder.stimulus_ids]
    if (shown["split"] == "test").any() or not shown["trained"].any():
        return
    first = str(shown.index[shown["trained"]][0])
    raise DataError(
        f"None of the {len(shown)} stimuli of {folder.folder} is in the test split of {dataset} (first: {first!r}, in train)"
        f"{f'; they were {elsewhere}' if elsewhere else ''}: name the dataset whose test split they are."
    )


def _controls(board: Scoreboard, brain: Scored) -> dict[str, str]:
    """Scores the controls that are not pictures of the folder; returns why which of them are absent."""
    board.control("permutation", brain.wrong, means(brain.wrong))
    lowest = not board.metrics[board.headline].higher_is_better
    world, count, seed = board.world, board.config.train_pictures, board.config.seed
    for name, scores, mispaired in picture_controls(
        world, count=count, seed=seed, headline=board.headline, lowest=lowest, brain=brain.seen
    ):
        board.control(name, scores, mispaired)
    if "mean_image" not in board.conditions:
        there = "fewer than two training pictures are known" if count > 1 else "train_pictures is below 2"
        return {"training_pictures": there}
    found = class_mean(world)
    if isinstance(found, str):
        return {"class_mean": found}
    board.control("class_mean", found[0], means(found[1]))
    return {}
