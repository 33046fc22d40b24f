"""Draw reconstructions of a split, and of the controls that show what the brain contributes.

The conditions of a trial, brain, controls (`cadiff.diffuse.controls`) and parts of the brain (`cadiff.diffuse.variants`),
go through the network together and with the same noise. Pictures are written as they are drawn, so memory holds one batch
of them however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from cadiff.artifacts import folder_digest, new_folder, provenance, read_json, refuse_existing, write_json
from cadiff.config import protocol_of
from cadiff.contrast.trials import dataset_digest
from cadiff.data.dataset import BrainDataset, write_table
from cadiff.data.splits import average_repeats, check_disjoint
from cadiff.data.trained_on import refuse_tested
from cadiff.diffuse.class_start import class_starts
from cadiff.diffuse.controls import AUTOENCODED, Trials, autoencoded, control, read_betas
from cadiff.diffuse.drawing import Drawing
from cadiff.diffuse.importance import condition_importance, importance_table
from cadiff.diffuse.latents import crop_latents
from cadiff.diffuse.likelihood import LatentLikelihood
from cadiff.diffuse.pictures import KIND, sample_table, save_picture
from cadiff.diffuse.pipeline import FmriToImagePipeline, find_pipeline, open_pipeline, pipeline_protocol
from cadiff.diffuse.precision import resolved
from cadiff.diffuse.rerank import ENCODING, Reranker, open_encoding
from cadiff.diffuse.sampling import make_scheduler, num_calls
from cadiff.diffuse.settings import ReconstructConfig
from cadiff.diffuse.variants import Variant, repeat_variants, roi_variants
from cadiff.errors import DataError
from cadiff.priors.load import ImagePrior

T = TypeVar("T")


def reconstruct(config: ReconstructConfig, pipeline: Path, dataset: Path, out: Path) -> Path:
    """Draws pictures for every stimulus of a split into a new folder; stopped half-way, it leaves nothing behind.

    Args:
        pipeline: pipeline folder of `diffuse`.
        dataset: dataset folder of the subject that the pipeline was tuned on. Betas and labels are read, of the pictures drawn
            only those of the condition `autoencoded`, which shows them to no network that draws; training pictures where a
            model of the betas is fitted (`likelihood`, `rerank`).
        out: folder to make: config.json, samples.tsv (condition, stimulus_id, sample, file), images/, and
            voxel_importance.tsv (voxel, rois, importance, x, y, z where known); with `rerank` also rerank.tsv (condition,
            stimulus_id, sample as drawn, round after round, log_likelihood, weight among those of the first round) and
            encoding/, the model where it was fitted here. In config.json, "provenance" says how many "training_trials" of
            how many "training_stimuli" the pipeline was tuned on, as far as its own record does, and in which "precision" it
            drew, and "variants" what each part of the brain is: {"repeats_4": {"kind": "repeats", "value": 4}}; the other kinds,
            "only_roi" and "without_roi", have the ROI as value and, as num_voxels, how many voxels are left to read.

    Raises:
        ArtifactError: `out` exists, or the pipeline is missing or damaged.
        DataError: no trials, another number of voxels, a test stimulus that the dataset or the pipeline was trained on, or a
            control, repeats or ROIs that the data do not allow.
        ConfigError: settings that the pipeline cannot follow.
    """
    refuse_existing(out)  # before minutes of sampling
    data = BrainDataset.open(dataset)
    check_disjoint(data)
    learnt = _learnt_from(find_pipeline(pipeline))
    if config.split == "test":
        refuse_tested(learnt.get("trained_on", []), [data], find_pipeline(pipeline))
    pipe = open_pipeline(pipeline)
    num_calls(
        make_scheduler(config.scheduler, pipe.scheduler.config), config.num_inference_steps, config.strength
    )
    trials = _trials(config, data)
    model = None
    if config.rerank is not None or config.class_start:
        source = config.rerank or ENCODING
        model = open_encoding(source, data, config.rerank_features, pipe.image_size, config.seed)
    starts = class_starts(pipe, model, config, data) if model is not None and config.class_start else None
    likelihood = _likelihood(config, pipe, data)
    weigh = None if likelihood is None else partial(likelihood.evidence, weight=config.likelihood)
    about_betas: dict[str, Any] = {"split": config.split, "starts": starts, "weigh": weigh}
    read = partial(read_betas, pipe, with_guess=config.strength < 1, **about_betas)
    brain = read(trials.betas, trials.repeats)
    asked = dict.fromkeys(config.controls)
    drawn = {"brain": brain} | {
        name: control(name, brain, pipe, data, trials=trials, seed=config.seed, **about_betas)
        for name in asked
        if name != AUTOENCODED
    }
    further = _variants(config, pipe, data, trials)
    reranker = None
    if model is not None and config.rerank is not None:
        reranker = Reranker(model, config)
    importance = None
    if config.importance:
        importance = condition_importance(
            pipe.conditioner,
            trials.betas,
            trials.repeats,
            split=config.split,
            with_guess=config.strength < 1,
            seed=config.seed,
        )
    inputs = {"pipeline": folder_digest(find_pipeline(pipeline)), "dataset": dataset_digest(data)}
    protocol = protocol_of("reconstruct", config, before=pipeline_protocol(pipeline))
    used = resolved(config.precision, pipe.unet.device)
    tuned_on = {f"training_{key}": learnt[key] for key in ("trials", "stimuli") if key in learnt}
    facts = provenance(inputs=inputs, protocol=protocol, precision=used, **tuned_on)
    if model is not None:
        facts["encoding"] = model.facts
    if likelihood is not None:
        facts["likelihood"] = likelihood.facts
    features = pipe.conditioner.image_context
    if features is not None:  # what draws from a network's features must not be judged by it
        facts["fitted"] = {"eye": {"name": features.config["eye"]}}
    about = {"kind": KIND, "format": 1, "config": config.model_dump(mode="json"), "provenance": facts}
    with new_folder(out) as folder:
        with TemporaryDirectory(dir=folder) as scratch:
            rows = {name: found.on_disk(Path(scratch) / name) for name, found in drawn.items()}
            if reranker is not None:
                reranker.read_controls(rows, trials, data, config.split)
            del brain, drawn
            variants: dict[str, Any] = {}
            for name, variant in further:
                rows[name] = read(variant.betas, variant.repeats).on_disk(Path(scratch) / name)
                variants[name] = variant.as_json()
                if reranker is not None:
                    reranker.read(name, variant.betas, variant.repeats)
            counts = dict.fromkeys(rows, reranker.num_kept if reranker else config.num_images_per_trial)
            table = sample_table(
                trials.stimulus_ids, {**counts, **dict.fromkeys(asked.keys() & {AUTOENCODED}, 1)}
            )
            files = {str(name): list(part["file"]) for name, part in table.groupby("condition")}
            drawing = Drawing(config, pipe, rows, len(trials.stimulus_ids), likelihood)
            pictures = drawing.all() if reranker is None else reranker.kept(drawing)
            for name, number, picture in pictures:
                save_picture(folder / files[name][number], picture)
            del rows  # or a system that keeps mapped files would keep these
        if AUTOENCODED in asked:
            shown = autoencoded(pipe, data, trials.stimulus_ids, config.batch_size)
            for file, picture in zip(files[AUTOENCODED], shown, strict=True):
                save_picture(folder / file, picture)
        write_json(folder / "config.json", {**about, "variants": variants} if variants else about)
        table.to_csv(folder / "samples.tsv", sep="\t", index=False, lineterminator="\n")
        if reranker is not None:
            write_table(reranker.table(trials.stimulus_ids), folder / "rerank.tsv")
            if config.rerank == ENCODING:
                reranker.model.save(
                    folder / ENCODING, inputs={"dataset": inputs["dataset"]}, seed=config.seed
                )
        if importance is not None:
            write_table(importance_table(data.voxels, importance), folder / "voxel_importance.tsv")
    return out


def _likelihood(
    config: ReconstructConfig, pipe: FmriToImagePipeline, data: BrainDataset
) -> LatentLikelihood | None:
    if not config.likelihood:
        return None
    rows = data.rows("train")
    if not len(rows):
        raise DataError(
            f"{data.folder} has no training trials to fit the likelihood of latents on: set likelihood=0, or give such a dataset."
        )
    prior = ImagePrior(pipe.vqvae, pipe.unet, pipe.scheduler, pipe.vqvae.config["scaling_factor"])

    def latents_of(stimulus_ids: Sequence[str]) -> Tensor:
        return crop_latents(data, stimulus_ids, prior, num_crops=0, crop_ratio=0.0, seed=0)[:, 0]

    voxels = pipe.conditioner.preprocessor.voxel_index
    return LatentLikelihood.fit(data, rows, latents_of, voxels=voxels, seed=config.seed)


def _trials(config: ReconstructConfig, data: BrainDataset) -> Trials:
    if config.average_repeats:
        betas, stimulus_ids, repeats = average_repeats(data, config.split)
    else:
        rows = data.rows(config.split)
        betas, repeats = data.betas[rows], np.ones(len(rows), dtype=np.int64)
        stimulus_ids = [str(s) for s in data.trials["stimulus_id"].to_numpy()[rows]]
    if not stimulus_ids:
        raise DataError(f"{data.folder} has no trials of split {config.split}.")
    kept = slice(config.max_stimuli)
    return Trials(betas[kept], stimulus_ids[kept], repeats[kept])


def _variants(
    config: ReconstructConfig, pipe: FmriToImagePipeline, data: BrainDataset, trials: Trials
) -> Iterator[tuple[str, Variant]]:
    fewer = repeat_variants(data, config.split, trials.stimulus_ids, config.repeats, config.seed)
    regions = roi_variants(
        data,
        pipe.conditioner.preprocessor,
        trials.betas,
        trials.repeats,
        only=config.only_rois,
        without=config.without_rois,
    )
    return chain(_begun(fewer), _begun(regions))


def _begun(items: Iterable[T]) -> Iterator[T]:
    """The same, the first one made already: what cannot be had is refused before anything is drawn or written."""
    rest = iter(items)
    return chain([first for first in [next(rest, None)] if first is not None], rest)


def _learnt_from(pipeline: Path) -> dict[str, Any]:
    """The pipeline's own record of how it was tuned; empty where a user saved it again."""
    record = pipeline / "provenance.json"
    return read_json(record) if record.is_file() else {}
