"""Simulated subjects: a known code, known noise ceilings, any design; a cadiff dataset comes out.

    simulate(SimulateConfig(), Path("sub-01"))                        # Generic Object Decoding's design, realistic noise
    simulate(SimulateConfig(subject=2, only_unlabelled=True, unlabelled_trials=600), Path("sub-02"))

How voxels respond is in `simulate_voxels.py`, who sees what when in `simulate_design.py`. A simulation can show that a
pipeline works and where it breaks, not how well it reads a brain: the code is ours, and so is its noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, model_validator
from typing_extensions import Self

from cadiff.config import Config
from cadiff.data import gabor
from cadiff.data import simulate_voxels as vox
from cadiff.data.dataset import BrainDataset, write_dataset
from cadiff.data.simulate_design import choose_stimuli, describe_design, trial_table
from cadiff.data.stimulus_sets import StimulusSet, load_stimuli
from cadiff.errors import DataError

GOD_VOXELS = {"V1": 900, "V2": 850, "V3": 700, "V4": 600, "LOC": 500, "FFA": 400, "PPA": 350, "VC": 166}
"""4466 voxels, as subject 1 of Generic Object Decoding has; VC here are those in no named area."""
REALISTIC_DIMS = {"V1": 13, "V2": 12, "V3": 10, "V4": 10, "LOC": 12, "FFA": 8, "PPA": 8, "VC": 6}
"""Components an area shares; encoding weights of BOLD5000 have an effective 3-13."""
NOISE_FREE = "noise_free.npy"
"""float32 (test stimuli in the order of their first trial, voxels), in the units of the betas."""
MAX_VIEWED = 400  # different pictures behind unlabelled viewing: each costs a classifier pass


class SimulateConfig(Config):
    """A simulated subject. The defaults are GOD's design with realistic noise."""

    preset: str = "realistic"
    """Name that every page about this subject shows, such as realistic or demo."""
    subject: int = Field(1, ge=1)
    """Subjects of one seed share stimuli and code statistics; voxels, noise and trial order are their own."""
    seed: int = Field(0, ge=0)
    """Same seed, same bits."""
    images: Path | None = None
    """Folder of pictures, <class>/<file> or pictures with a .tsv of labels; nothing means the shipped set."""
    image_size: int = Field(64, ge=8)
    """Side of the stored stimuli, pixels."""
    num_train_classes: int = Field(150, ge=0)
    """Classes trained on."""
    images_per_class: int = Field(8, ge=1)
    """Training pictures a class."""
    train_repeats: int = Field(1, ge=1)
    """Presentations of a training picture."""
    num_test_images: int = Field(50, ge=0)
    """Test pictures, spread over as many classes as there are."""
    test_repeats: int = Field(35, ge=1)
    """Presentations of a test picture."""
    test_classes: Literal["disjoint", "seen"] = "disjoint"
    """Test on classes never trained on (GOD), or on new pictures of trained classes (BOLD5000, NSD)."""
    unlabelled_trials: int = Field(0, ge=0)
    """Volumes of rest and of viewing other pictures, without labels, for phase 1."""
    only_unlabelled: bool = False
    """Write the unlabelled volumes alone (a further subject for phase 1); what it views still avoids the test pictures."""
    trials_per_run: int = Field(50, ge=1)
    """Trials a run."""
    runs_per_session: int = Field(10, ge=1)
    """Runs a session."""
    voxels_per_roi: dict[str, int] = Field(default_factory=lambda: dict(GOD_VOXELS))
    """Voxels of each area, in this order; V1, V2, V3, V4, EarlyVis are early, any other name is higher."""
    roi_dims: dict[str, int] | int = Field(default_factory=lambda: dict(REALISTIC_DIMS))
    """Signal components that the voxels of an area share: one number, or one an area (8 where not named)."""
    snr: float = Field(0.25, ge=0)
    """Mean over voxels of signal sd / noise sd in single trials: .17-.23 BOLD5000, .25-.32 NSD, .7 Miyawaki V1."""
    snr_spread: float = Field(1.0, ge=0)
    """Standard deviation of that SNR over voxels, as a fraction of its mean."""
    zero_fraction: float = Field(0.2, ge=0, lt=1)
    """Voxels without any signal."""
    drift: float = Field(0.1, ge=0, le=1)
    """Share of noise variance that is slow: offsets of runs and sessions, trends inside runs."""
    noise_correlation: float = Field(0.2, ge=0, le=1)
    """Share of the other noise that neighbouring voxels have in common."""
    noise_free: bool = False
    """Also store the responses to the test pictures without noise, for the condition `noise_free` of reconstruct."""
    classifier: str = "efficientnet-lite0"
    """Network whose features drive the higher areas; score reconstructions with another one."""
    classifier_size: int = Field(160, ge=32, multiple_of=32)
    """Pixels a side it sees: 160 names 64-pixel photos as well as its own 224 does (top-1 .36 and .33), three times as fast."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.voxels_per_roi or min(self.voxels_per_roi.values()) < 1:
            raise ValueError("voxels_per_roi needs at least one area, and at least one voxel in each")
        dims = [self.roi_dims] if isinstance(self.roi_dims, int) else [8, *self.roi_dims.values()]
        if min(dims) < 1:
            raise ValueError("roi_dims must be at least 1")
        if not (self.num_train_classes or self.num_test_images or self.unlabelled_trials):
            raise ValueError("nothing to simulate: no training class, no test picture, no unlabelled trial")
        if self.only_unlabelled and not self.unlabelled_trials:
            raise ValueError("only_unlabelled needs unlabelled_trials")
        if self.test_classes == "seen" and self.num_test_images and not self.num_train_classes:
            raise ValueError("test_classes=seen needs training classes")
        if (1 + self.snr_spread**2) * (1 - self.zero_fraction) <= 1:
            raise ValueError(
                f"snr_spread={self.snr_spread:g} is less than zero_fraction={self.zero_fraction:g} of silent voxels "
                "already brings; raise the one or lower the other"
            )
        return self


def simulate(config: SimulateConfig, out: Path, *, progress: bool = True) -> Path:
    """Simulates one subject and writes its dataset folder `out`, which must not exist.

    Betas are in percent-signal-change-like units and not normalised; voxels.tsv holds the true noise ceiling, the SNR and the
    receptive fields. Raises DataError when the pictures do not suffice for the design.
    """
    stimuli = load_stimuli(config.images)
    choice = choose_stimuli(
        stimuli.table,
        num_train_classes=config.num_train_classes,
        images_per_class=config.images_per_class,
        num_test_images=config.num_test_images,
        test_classes=config.test_classes,
        rng=np.random.default_rng([config.seed, 0]),
    )
    train, test = ([], []) if config.only_unlabelled else (choice.train, choice.test)
    trials = trial_table(
        train,
        test,
        train_repeats=config.train_repeats,
        test_repeats=config.test_repeats,
        unlabelled_trials=config.unlabelled_trials,
        trials_per_run=config.trials_per_run,
        runs_per_session=config.runs_per_session,
        rng=np.random.default_rng([config.seed, config.subject, 1]),
    )
    shown = train + test
    pictures = stimuli.images(shown, config.image_size)
    viewed = _viewed_pictures(config, stimuli, choice.train, choice.others)
    made = simulate_betas(config, pictures, shown, viewed, trials, progress=progress)
    tested = dict.fromkeys(trials.loc[trials["split"] == "test", "stimulus_id"])
    row_of = {stimulus_id: row for row, stimulus_id in enumerate(shown)}
    free = made.noise_free[[row_of[stimulus_id] for stimulus_id in tested]]
    rows = stimuli.table[stimuli.table["stimulus_id"].isin(shown)].drop(columns="file")
    return write_dataset(
        Path(out),
        name=f"simulated ({config.preset}, SNR {config.snr:g})",
        subject=f"sim-{config.subject:02d}",
        betas=made.betas,
        trials=trials,
        voxels=made.voxels,
        stimuli=rows,
        images=dict(zip(shown, pictures, strict=True)),
        description={
            "simulated": True,
            "preset": config.preset,
            "snr": config.snr,
            "units": "percent signal change",
            "design": describe_design(stimuli.table, trials, config.test_classes),
            "stimuli": stimuli.source,
            "classifier": config.classifier,
            "config": config.model_dump(mode="json"),
        },
        arrays={NOISE_FREE: free} if config.noise_free else None,
    )


class Simulated(NamedTuple):
    """Responses of a simulated subject."""

    betas: np.ndarray
    """float32 (trials, voxels)."""
    voxels: pd.DataFrame
    """rois, noise_ceiling, snr, rf_x, rf_y, rf_size."""
    noise_free: np.ndarray
    """float32 (stimuli, voxels): what the betas of a stimulus would average to over ever more presentations."""


def simulate_betas(
    config: SimulateConfig,
    pictures: np.ndarray,
    stimulus_ids: Sequence[str],
    viewed: np.ndarray,
    trials: pd.DataFrame,
    *,
    progress: bool = False,
) -> Simulated:
    """Betas, voxel table and noise-free responses, in memory.

    pictures: uint8 (n, H, W, 3) of `stimulus_ids`; viewed: uint8 (m, H, W, 3) behind unlabelled viewing (m may be 0 without
    unlabelled trials); trials: as `simulate_design.trial_table` gives. Signals have unit variance over the training pictures.
    """
    everything = np.concatenate([pictures, viewed])
    training = set(trials.loc[trials["split"] == "train", "stimulus_id"])
    reference = np.flatnonzero([name in training for name in stimulus_ids])
    if len(reference) == 0:
        reference = np.arange(len(everything))
    channels, features = _describe(everything, config, progress)
    row_of = {name: row for row, name in enumerate(stimulus_ids)}
    labelled = np.flatnonzero((trials["split"] != "unlabelled").to_numpy())
    shown = np.array([row_of[name] for name in trials["stimulus_id"].iloc[labelled]], np.int64)
    session, run = trials["session"].to_numpy(), trials["run"].to_numpy()
    volumes = len(trials) - len(labelled)
    betas = np.empty((len(trials), sum(config.voxels_per_roi.values())), np.float32)
    free = np.empty((len(pictures), betas.shape[1]), np.float32)
    tables: list[pd.DataFrame] = []
    start = 0
    for area, count in config.voxels_per_roi.items():
        # a generator for each area: adding one leaves the others as they are
        rng = np.random.default_rng([config.seed, config.subject, 3, *area.encode()])
        dims = config.roi_dims if isinstance(config.roi_dims, int) else config.roi_dims.get(area, 8)
        signals, fields = vox.area_signals(area, count, dims, channels, features, reference, rng)
        per_trial = np.empty((len(trials), count), np.float32)
        per_trial[labelled] = signals[shown]
        if volumes:  # the same seed in every area: all of them rest and view together
            together = np.random.default_rng([config.seed, config.subject, 2])
            per_trial[len(trials) - volumes :] = _unlabelled(signals[len(pictures) :], volumes, together)
        snr = vox.draw_snr(count, config.snr, config.snr_spread, config.zero_fraction, rng)
        snr[~signals[reference].any(axis=0)] = (
            0.0  # a voxel whose field sees nothing that varies has no signal
        )
        noise = vox.structured_noise(session, run, count, config.drift, config.noise_correlation, rng)
        baseline, amplitude = rng.normal(0.5, 0.7, count), rng.lognormal(0.0, 0.4, count)
        columns, silence = slice(start, start + count), np.zeros((1, count), np.float32)
        betas[:, columns] = vox.signals_to_betas(per_trial, snr, noise, baseline, amplitude)
        free[:, columns] = vox.signals_to_betas(signals[: len(pictures)], snr, silence, baseline, amplitude)
        tables.append(_voxel_table(area, snr, fields))
        start += count
    return Simulated(betas, pd.concat(tables, ignore_index=True), free)


def noise_free_betas(dataset: BrainDataset, split: str, stimulus_ids: Sequence[str]) -> np.ndarray:
    """The responses to test stimuli without noise, float32 (n, voxels), of a subject simulated with `noise_free`.

    Raises:
        DataError: a real subject, one that was simulated without this, a changed copy, or another split.
    """
    path = dataset.folder / NOISE_FREE
    if split != "test" or not path.is_file():
        lacking = f"of split {split}" if split != "test" else f"in {dataset.folder} (expected {NOISE_FREE})"
        raise DataError(
            f"The condition 'noise_free' needs responses without noise, and there are none {lacking}: real data have none, a "
            "simulated subject those to its test pictures when it was made with noise_free=true and not changed since."
        )
    stored = np.load(path, mmap_mode="r", allow_pickle=False)
    row_of = {stimulus_id: row for row, stimulus_id in enumerate(dataset.stimulus_ids("test"))}
    return np.asarray(stored[[row_of[stimulus_id] for stimulus_id in stimulus_ids]])


def _describe(
    images: np.ndarray, config: SimulateConfig, progress: bool
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What the areas read: local channels (n, C, P), and classifier layers (n, F) with maps averaged to 2 x 2 places."""
    areas = list(config.voxels_per_roi)
    channels = np.zeros((len(images), gabor.NUM_CHANNELS, 0), np.float32)
    if any(area in vox.EARLY for area in areas):
        channels = gabor.local_channels(gabor.to_field(images))
    layers = tuple(dict.fromkeys(layer for area in areas for layer in vox.layers_of(area)))
    if not layers:
        return channels, {}
    from cadiff.vision import load_classifier  # imports torch; needed for higher areas only

    classifier = load_classifier(config.classifier)
    classifier.image_size = config.classifier_size
    found = classifier.features(images, layers, pool=2, progress=progress)
    return channels, {layer: values.reshape(len(images), -1) for layer, values in found.items()}


def _unlabelled(viewing: np.ndarray, volumes: int, rng: np.random.Generator) -> np.ndarray:
    """Signals (volumes, V): blocks of about 20 volumes, by turns at rest and viewing; the same moments in every area."""
    rest = vox.rest_signals(volumes, viewing, rng)
    shown = viewing[rng.integers(len(viewing), size=volumes)]
    looking = (np.arange(volumes) // 20) % 2 == 1
    return np.where(looking[:, None], shown, rest)


def _viewed_pictures(
    config: SimulateConfig, stimuli: StimulusSet, train: list[str], others: list[str]
) -> np.ndarray:
    """Pictures behind unlabelled viewing: ones that no trial shows, else mirror images of training pictures."""
    if not config.unlabelled_trials:
        return np.empty((0, config.image_size, config.image_size, 3), np.uint8)
    rng = np.random.default_rng([config.seed, config.subject, 4])
    if not train and not others:
        raise DataError(
            "Unlabelled viewing has no picture to show: all are test pictures or of test classes."
        )
    wanted = min(MAX_VIEWED, config.unlabelled_trials)
    fresh = list(rng.permutation(others))[:wanted]
    mirrored = list(rng.permutation(train))[: wanted - len(fresh)]
    images = [
        stimuli.images(fresh, config.image_size),
        stimuli.images(mirrored, config.image_size)[:, :, ::-1],
    ]
    return np.concatenate(images)


def _voxel_table(area: str, snr: np.ndarray, fields: gabor.ReceptiveFields | None) -> pd.DataFrame:
    nowhere = np.full(len(snr), np.nan)
    return pd.DataFrame(
        {
            "rois": vox.roi_names(area),
            "noise_ceiling": vox.ceiling_of_snr(snr),
            "snr": snr,
            "rf_x": nowhere if fields is None else fields.x,
            "rf_y": nowhere if fields is None else fields.y,
            "rf_size": nowhere if fields is None else fields.size,
        }
    )
