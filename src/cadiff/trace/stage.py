"""`cadiff trace`: a pipeline and its dataset in, one page about every station between betas and picture out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from cadiff.artifacts import folder_digest, new_folder, provenance, read_json, refuse_existing, write_json
from cadiff.contrast.encoder_folder import load_encoder
from cadiff.contrast.mae import FmriEncoder, stretched
from cadiff.contrast.trials import dataset_digest
from cadiff.data.dataset import BrainDataset, write_table
from cadiff.data.splits import average_repeats, check_disjoint
from cadiff.diffuse.pipeline import FmriToImagePipeline, find_pipeline, open_pipeline
from cadiff.errors import ArtifactError, DataError
from cadiff.evaluate.ledger import record_look
from cadiff.evaluate.pictures import Reconstructions
from cadiff.trace.page import write_trace_page
from cadiff.trace.pictures import open_drawn, other_ways, refuse_chooser
from cadiff.trace.starts import held_out_start, own_start, starting_eyes, tuning_settings
from cadiff.trace.stations import Inputs, stations
from cadiff.trace.table import Table
from cadiff.trace.targets import judge_target, pixel_target

Split = Literal["test", "train"]
PHASES = {"contrast": "Phase 1", "attend": "Phase 2"}
"""Stage that an encoder folder names -> what its tokens are called."""


def trace(
    dataset: Path,
    pipeline: Path,
    out: Path,
    *,
    encoders: Sequence[Path] = (),
    reconstructions: Path | None = None,
    judge: str = "efficientnet-lite2",
    split: Split = "test",
    num_bootstrap: int = 10_000,
    seed: int = 0,
) -> Path:
    """Reads the stimulus out of every station of a pipeline, and scores how much of it is there.

    The read-out is linear (`cadiff.trace.probe`), fitted on the training trials, onto the first components of the training
    stimuli by a judge and by pixels (`cadiff.trace.targets`). With split test the trials of each test stimulus are averaged and
    predicted: that is a look at the test set, and the ledger counts it. With split train the training trials are predicted by
    folds that never saw their stimulus, and averaged; starts are held out then (`cadiff.trace.starts`), but encoders and mapper
    were tuned on these trials all the same, so their stations may look better than they are.

    Writes into the new folder `out`:
        trace.json    every station and target: means, intervals, paired differences, verdict, provenance
        trace.tsv     station, target, stimulus_id, two_way, correlation
        trace.html    the page

    Args:
        dataset: the dataset that the pipeline was tuned on.
        pipeline: pipeline folder of `diffuse`, or the run around it.
        encoders: encoder folders of earlier stages, in their order.
        reconstructions: folder of `reconstruct` by this pipeline and of this split; only the stimuli that it shows are scored.
        judge: a classifier, or an eye as NAME=PATH (docs/judges.md).
        num_bootstrap: resamples of the stimuli for an interval, and sign flips for a test.
        seed: of folds, bootstrap, permutations, and the random encoder.

    Raises:
        ArtifactError: a folder is missing, damaged, in the way, or of another pipeline. DataError: another subject's dataset, or
            too few stimuli. ConfigError: an unknown judge, or one that had a say in the pictures.
    """
    refuse_existing(out)
    data = BrainDataset.open(dataset)
    check_disjoint(data)
    folder = find_pipeline(pipeline)
    digest = folder_digest(folder)
    _refuse_other_data(folder, data)
    drawn = None if reconstructions is None else open_drawn(reconstructions, digest, split, judge)
    pipe = open_pipeline(folder)
    refuse_chooser(judge, starting_eyes(pipe.conditioner), folder)
    settings = tuning_settings(folder)
    earlier = open_encoders(encoders, pipe, stretch=bool(settings.get("own_length")))
    train, others, ids, remark = _inputs(pipe, data, settings, split, drawn)
    table = _table(data, pipe.image_size, judge, ids, split=split, num_bootstrap=num_bootstrap, seed=seed)
    inputs = [train] if others is None else [train, others]
    found = stations(pipe.conditioner, inputs, encoders=earlier, seed=seed)
    for station in tqdm(found, desc="stations", unit="station", disable=None, leave=False):
        table.read(station)
    if drawn is not None:
        table.look(drawn, pipe.image_size)
    read_from = {"dataset": dataset_digest(data), "pipeline": digest}
    read_from |= {f"encoder_{i + 1}": folder_digest(path) for i, path in enumerate(encoders)}
    systems = {"trace": digest}
    if reconstructions is not None:  # the system that `evaluate` counts, and no other one
        read_from["reconstructions"] = folder_digest(reconstructions)
        systems = {"brain": read_from["reconstructions"]}
    looks = None
    if split == "test":
        resplit = data.description.get("resplit")
        looks = record_look(data.folder, systems, selected_on=None, resplit=resplit).as_json()
    record: dict[str, Any] = {
        "kind": "trace",
        "format": 1,
        "config": {"judge": judge, "split": split, "num_bootstrap": num_bootstrap, "seed": seed},
        "dataset": {key: data.description.get(key) for key in ("name", "subject", "simulated")},
        "trials": len(table.shown),
        **table.as_json(),
        "remarks": [*([remark] if remark else []), *([] if drawn is None else other_ways(drawn))],
        "integrity": looks,
        "provenance": provenance(inputs=read_from),
    }
    with new_folder(out) as made:
        write_json(made / "trace.json", record)
        write_table(table.per_stimulus(), made / "trace.tsv")
        write_trace_page(record, made / "trace.html")
    return out


def open_encoders(
    folders: Sequence[Path], pipe: FmriToImagePipeline, *, stretch: bool = False
) -> dict[str, FmriEncoder]:
    """Label -> encoder of earlier stages, at the length that the pipeline reads.

    Args:
        stretch: the pipeline was tuned at the subject's own length, to which `diffuse` stretched the encoder's positions.

    Raises:
        ArtifactError: no encoder, or one that reads another number of voxels.
    """
    found: dict[str, FmriEncoder] = {}
    length = pipe.conditioner.encoder.config.num_voxels
    for folder in folders:
        encoder, _ = load_encoder(folder)
        if encoder.config.num_voxels != length and not stretch:
            raise ArtifactError(
                f"The encoder {folder} reads {encoder.config.num_voxels:,} voxels, the pipeline's {length:,}: name the encoders "
                "that the pipeline was made from."
            )
        stage = (read_json(folder / "config.json").get("provenance") or {}).get("stage")
        label = PHASES.get(str(stage), folder.name)
        while label in found:
            label += "+"
        found[label] = stretched(encoder, length)
    return found


def _refuse_other_data(pipeline: Path, data: BrainDataset) -> None:
    """Raises DataError where the pipeline says that it was tuned on other data than these."""
    record = pipeline / "provenance.json"
    tuned_on = ((read_json(record) if record.is_file() else {}).get("inputs") or {}).get("dataset")
    if tuned_on is not None and tuned_on != dataset_digest(data):
        raise DataError(
            f"The pipeline {pipeline} was tuned on other data than {data.folder} ({data.description.get('subject')}): its "
            "stations are read out with the trials that it was tuned on, so name that dataset."
        )
    if len(data.rows("train")) == 0:
        raise DataError(f"{data.folder} has no training trials, from which the read-out is learnt.")


def _table(data: BrainDataset, side: int, judge: str, ids: list[str], **settings: Any) -> Table:
    """The empty table: targets fitted on the training stimuli at `side` pixels square, and the truth of the stimuli `ids`."""
    shown = [str(name) for name in data.trials["stimulus_id"].to_numpy()[data.rows("train")]]
    known = sorted(set(shown))
    places = {name: i for i, name in enumerate(known)}
    pictures, scored = data.images(known, size=side), data.images(ids, size=side)
    fitted = [judge_target(judge, pictures), pixel_target(pictures)]
    return Table(
        targets=[target for target, _ in fitted],
        components=[components for _, components in fitted],
        truth=[target(scored) for target, _ in fitted],
        shown=shown,
        rows=np.array([places[name] for name in shown]),
        stimulus_ids=ids,
        **settings,
    )


@torch.no_grad()
def _inputs(
    pipe: FmriToImagePipeline,
    data: BrainDataset,
    settings: dict[str, Any],
    split: Split,
    drawn: Reconstructions | None,
) -> tuple[Inputs, Inputs | None, list[str], str | None]:
    """Training trials; averaged test trials with split test; the stimuli that are scored; a remark on the starts."""
    conditioner = pipe.conditioner
    betas = conditioner.prepare(np.asarray(data.betas[data.rows("train")]), split="train").cpu()
    own = own_start(conditioner)
    ids = [str(name) for name in data.stimulus_ids(split)]
    kept = ids if drawn is None else [name for name in ids if name in drawn.stimulus_ids]
    if drawn is not None and len(kept) < len(drawn.stimulus_ids):
        raise DataError(
            f"{drawn.folder} shows {len(drawn.stimulus_ids) - len(kept)} stimuli that no {split} trial of {data.folder} shows."
        )
    if len(kept) < 2:
        raise DataError(
            f"{data.folder} has {len(kept)} {split} stimuli to trace; to tell them apart takes at least two."
        )
    if split == "train":
        start, remark = held_out_start(pipe, data, betas.to(conditioner.device), settings)
        return Inputs(betas, start), None, kept, remark
    raw, order, repeats = average_repeats(data, "test")
    rows = [order.index(name) for name in kept]
    tested = conditioner.prepare(raw[rows], repeats[rows])
    start = None if own is None else own(betas.to(conditioner.device)).cpu()
    others = Inputs(tested.cpu(), None if own is None else own(tested).cpu())
    return Inputs(betas, start), others, kept, None
