"""What an experiment starts from, found and looked at before a folder is made: a mistake costs seconds, not a phase 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cadiff.artifacts import what_is_at
from cadiff.attend.image_mae import load_image_mae
from cadiff.attend.stage import refuse_without_decoder
from cadiff.contrast import load_encoder
from cadiff.contrast.encoder_folder import encoder_trained_on
from cadiff.contrast.masking import num_visible
from cadiff.contrast.stage import ContrastConfig, trial_rows
from cadiff.contrast.stage import refuse_unfit as refuse_unfit_phase_1
from cadiff.contrast.trials import dataset_digest
from cadiff.data.dataset import BrainDataset
from cadiff.data.merge import dataset_folders
from cadiff.data.splits import check_disjoint
from cadiff.data.trained_on import refuse_tested, stages_trained_on
from cadiff.diffuse.rerank import ENCODING, open_encoding
from cadiff.diffuse.sampling import make_scheduler, num_calls
from cadiff.diffuse.settings import ReconstructConfig
from cadiff.diffuse.trials import refuse_unfit as refuse_unfit_prior
from cadiff.diffuse.trials import start_labels
from cadiff.encoding.features import default_features
from cadiff.errors import ArtifactError, ConfigError, DataError
from cadiff.evaluate.circular import refuse_circular
from cadiff.priors.load import load_prior
from cadiff.training import refuse_uneven

SOME = 20
"""Pictures that tell what features suit them."""
PARTS = ("prior", "image_mae", "phase1")


@dataclass(frozen=True)
class Sources:
    """What an experiment starts from."""

    dataset: Path | None
    """Of the subject under study; None where it is simulated."""
    phase_1: list[Path]
    """Datasets that phase 1 learns from, without simulated ones."""
    prior: str | Path
    image_mae: str | Path
    """"shipped", a ViT-MAE folder, or a prior folder that holds one."""
    encoder: Path | None = None
    """Of a phase 1 that was run before."""

    def as_json(self) -> dict[str, Any]:
        """Paths as text, for the record."""
        plain = {key: None if value is None else str(value) for key, value in vars(self).items()}
        return {**plain, "phase_1": [str(folder) for folder in self.phase_1]}


def find_sources(
    dataset: Path | None,
    corpus: Sequence[Path],
    prior: str | Path,
    weights: Path | None,
    include_studied: bool = True,
) -> Sources:
    """Where everything is.

    Args:
        dataset: of the subject under study, or None.
        corpus: datasets, or folders of them, for phase 1; the subject's own among them counts once.
        prior: "shipped" or a prior folder; a folder wins over the one in `weights`.
        weights: a prior folder, or a folder with any of prior/, image_mae/ and phase1/, as `cadiff weights import` makes.
        include_studied: phase 1 learns from `dataset` too.

    Raises:
        ArtifactError: nothing of that kind in `weights`.
        DataError: a corpus that is no dataset, or none where phase 1 needs one.
    """
    found = {} if weights is None else _parts(weights)
    chosen = prior if str(prior) != "shipped" else found.get("prior", prior)
    folders = [folder for source in corpus for folder in dataset_folders(source)]
    if dataset is not None:
        own = dataset_digest(BrainDataset.open(dataset))
        folders = [folder for folder in folders if dataset_digest(BrainDataset.open(folder)) != own]
        folders += [dataset] if include_studied else []
        if not folders and "phase1" not in found:
            raise DataError(
                "Phase 1 of this preset learns from other data than the subject's own: give them with --corpus (HCP in the "
                "paper), a phase 1 with --weights, or say --set corpus.include_studied=true."
            )
    return Sources(dataset, folders, chosen, found.get("image_mae", chosen), found.get("phase1"))


def refuse_unfit(configs: Mapping[str, Any], sources: Sources) -> None:
    """Raises what the stages would raise hours later, as far as it can be told without training.

    Raises:
        DataError: datasets without the trials, pictures or ROIs that are needed, or with a leak between the splits.
        ConfigError: settings that do not fit the data, the encoder or the prior.
        ArtifactError: weights that are missing, damaged, or lack what a stage needs.
    """
    needed = {"contrast": sources.encoder is None, "attend": configs["stages"].attend, "diffuse": True}
    for stage, is_needed in needed.items():
        if is_needed:
            refuse_uneven(configs[stage].fit)
    data = None if sources.dataset is None else BrainDataset.open(sources.dataset)
    if data is not None:
        check_disjoint(data)
        for split in ("train", configs["reconstruct"].split):
            if len(data.rows(split)) == 0:
                raise DataError(f"{data.folder} has no {split} trials, which this experiment needs.")
    if sources.encoder is not None:
        _refuse_unfit_encoder(configs["contrast"], sources.encoder, decoder=configs["stages"].attend)
        if data is not None:
            refuse_tested(encoder_trained_on(sources.encoder), [data], sources.encoder)
    elif data is not None:  # else phase 1 learns from simulated subjects too
        opened = [BrainDataset.open(folder) for folder in sources.phase_1]
        refuse_unfit_phase_1(configs["contrast"], opened)
        entries = stages_trained_on("contrast", [], opened, trial_rows(opened))
        refuse_tested(entries, [data], "Phase 1 of this experiment")
    else:
        for folder in sources.phase_1:
            BrainDataset.open(folder)
    if configs["stages"].attend:
        depth = configs["attend"].image_decoder_depth
        images: Any = load_image_mae(sources.image_mae, decoder_depth=depth).model
        num_visible(images.vit.embeddings.patch_embeddings.num_patches, configs["attend"].image_mask_ratio)
    prior = load_prior(sources.prior)
    if data is None:
        refuse_unfit_prior(configs["diffuse"], prior)
    else:
        start_labels(configs["diffuse"], data, prior)
        data.refuse_unreadable(data.rows("train"))
    drawn: ReconstructConfig = configs["reconstruct"]
    num_calls(
        make_scheduler(drawn.scheduler, prior.scheduler.config), drawn.num_inference_steps, drawn.strength
    )
    choosing = _choosing(drawn, data, prior.image_size)
    refuse_circular(configs["evaluate"], choosing, "this experiment (reconstruct.rerank, .class_start)")


def _choosing(config: ReconstructConfig, data: BrainDataset | None, size: int) -> Sequence[str]:
    """Features by which pictures will be chosen, as far as they are known; those of simulated pictures are not."""
    source = config.rerank or (ENCODING if config.class_start else None)
    if source is None:
        return ()
    if source != ENCODING and data is not None:
        return open_encoding(source, data, config.rerank_features, size, config.seed).facts["features"]
    if config.rerank_features is not None:
        return config.rerank_features
    return () if data is None else default_features(data.images(data.stimulus_ids("train")[:SOME], size))


def _parts(folder: Path) -> dict[str, Path]:
    """prior, image_mae and phase1, those of them that `folder` holds; or the folder itself as a prior."""
    found = {name: folder / name for name in PARTS if (folder / name).is_dir()}
    if (folder / "unet").is_dir():
        found["prior"] = folder
    if not found:
        raise ArtifactError(
            f"{folder} holds no weights to start from (found: {what_is_at(folder)}): expected an image prior, or any of "
            "prior/, image_mae/ and phase1/, as `cadiff weights import` makes them."
        )
    if "phase1" in found and (found["phase1"] / "encoder").is_dir():  # a run folder of `cadiff contrast`
        found["phase1"] /= "encoder"
    return found


def _refuse_unfit_encoder(config: ContrastConfig, folder: Path, *, decoder: bool) -> None:
    encoder, _ = load_encoder(folder)
    if decoder:
        refuse_without_decoder(encoder, folder)
    wanted: dict[str, Any] = {f"mae.{key}": value for key, value in config.mae.model_dump().items()}
    if config.num_voxels is not None:
        wanted["num_voxels"] = config.num_voxels
    for key, value in wanted.items():
        found = getattr(encoder.config, key.removeprefix("mae."))
        if found != value:
            raise ConfigError(
                f"The encoder in {folder} has {key}={found}, but this preset is for {value}: take the encoder that belongs "
                f"to it, or say --set contrast.{key}={found}."
            )
