"""What SS-AE learns from: pairs, responses without pictures, and pictures without responses.

Test pictures are only compared with, never learnt from; test fMRI is learnt from under `protocol: official` alone.
n pairs, m responses, N pictures, V voxels, S pixels a side.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from cadiff import fingerprints as fp
from cadiff.baselines.ssae.settings import PUBLISHED_SIZE, SsAeConfig
from cadiff.data.dataset import BrainDataset
from cadiff.data.preprocess import PreprocessConfig, Preprocessor
from cadiff.data.stimulus_sets import PICTURES, load_stimuli
from cadiff.errors import DataError
from cadiff.priors.images import to_square

NO_IMAGES = "none"
SHIPPED_SIZE = 64
"""Side of the shipped pictures, pixels; they are not enlarged."""
AVERAGES = 10
"""Averages of a random third of the repeats that are drawn of every test stimulus (official)."""


@dataclass(frozen=True, eq=False)
class Pools:
    """Normalised responses are float32, pictures uint8 (N, S, S, 3): first those of the pairs, then the others."""

    preprocessor: Preprocessor
    betas: np.ndarray
    """(n, V) of the pairs."""
    picture: np.ndarray
    """(n,) row in `pictures` of each pair."""
    fmri: np.ndarray
    """(m, V): what E(D(r)) ~ r learns from."""
    pictures: np.ndarray
    """What D(E(x)) ~ x learns from."""
    snr: np.ndarray
    """(V,) of mean 1: by how much a voxel's error counts in E(D(r)) ~ r."""
    facts: dict[str, object]
    """Where all this comes from, as JSON values."""

    @property
    def size(self) -> int:
        """S."""
        return self.pictures.shape[1]

    def digest(self) -> str:
        """SHA-256 of everything learnt from."""
        found = hashlib.sha256()
        for array in (self.betas, self.picture, self.fmri, self.pictures, self.snr):
            found.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()


def gather(dataset: BrainDataset, rows: np.ndarray, config: SsAeConfig, seed: int) -> Pools:
    """Reads the pools of a fit on the training trials `rows`.

    Raises:
        DataError: a picture of the folder `images` that shows what a stimulus outside `rows` shows, or cannot be read. Where all
            pictures are so alike that this may be chance (digits), such ones are left out instead.
    """
    ids = dataset.trials["stimulus_id"].to_numpy(dtype=str)
    names = list(dict.fromkeys(ids[rows]))
    size = config.size or _side(dataset, names)
    ceiling = dataset.voxels["noise_ceiling"].to_numpy(dtype=float)
    settings = PreprocessConfig(match_repeat_spread=config.match_repeat_spread)
    preprocessor = Preprocessor.fit(dataset.betas[rows], settings, patch_size=1, noise_ceiling=ceiling)
    betas = preprocessor(dataset.betas[rows])
    rng = np.random.default_rng([seed, 0])
    if config.protocol == "official":
        fmri, snr = _test_fmri(dataset, preprocessor, rng)
        source, weighed = "TEST TRIALS (protocol official)", "repeats of TEST TRIALS (protocol official)"
    else:
        unlabelled = dataset.rows("unlabelled")
        fmri = np.concatenate([betas, preprocessor(dataset.betas[unlabelled])]) if len(unlabelled) else betas
        snr = voxel_snr(betas, ids[rows])
        source = "training trials" + (" and unlabelled trials" if len(unlabelled) else "")
        weighed = (
            "repeats of training trials" if snr is not None else "nothing: no training stimulus was repeated"
        )
    if snr is None:
        snr = np.ones(betas.shape[1], np.float32)
    others, about = _unpaired(dataset, set(names), config, size, rng)
    order = {name: row for row, name in enumerate(names)}
    pictures = np.concatenate([dataset.images(names, size), others])
    facts = {
        "test_fmri_was_trained_on": config.protocol == "official",
        "fmri_without_pictures": {"source": source, "count": len(fmri)},
        "voxel_weights_from": weighed,
        "pictures_without_fmri": {"training_pictures": len(names), **about},
        "size": size,
    }
    picture = np.array([order[name] for name in ids[rows]])
    return Pools(preprocessor, betas, picture, fmri, pictures, snr, facts)


def voxel_snr(betas: np.ndarray, stimulus_ids: np.ndarray) -> np.ndarray | None:
    """(V,) of mean 1: variance of the stimuli's means over variance within stimuli (2019 code); None without repeats.

    betas: (n, V). stimulus_ids: (n,).
    """
    _, which, counts = np.unique(stimulus_ids, return_inverse=True, return_counts=True)
    if len(counts) < 2 or counts.max() < 2:
        return None
    means = np.zeros((len(counts), betas.shape[1]))
    np.add.at(means, which, betas)
    means /= counts[:, None]
    noise = ((betas - means[which]) ** 2).sum(axis=0) / (counts - 1).sum()
    snr = means.var(axis=0) / np.maximum(noise, 1e-6)
    return (snr / max(float(snr.mean()), 1e-12)).astype(np.float32)


def _side(dataset: BrainDataset, names: list[str]) -> int:
    """That of the smallest picture shown, at most the published one."""
    shapes = [dataset.image(name).shape[:2] for name in names]
    return min(PUBLISHED_SIZE, min(min(shape) for shape in shapes))


def _test_fmri(
    dataset: BrainDataset, preprocessor: Preprocessor, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Averages (m, V) of a random third of each test stimulus' repeats, and the voxels' SNR over those repeats."""
    rows = dataset.rows("test")
    ids = dataset.trials["stimulus_id"].to_numpy(dtype=str)[rows]
    betas = dataset.betas[rows]
    averages, repeats = [], []
    for name in dict.fromkeys(ids):
        trials = np.flatnonzero(ids == name)
        for _ in range(AVERAGES):
            some = rng.permutation(trials)[: max(1, round(len(trials) / 3))]
            averages.append(betas[some].mean(axis=0, dtype=np.float64))
            repeats.append(len(some))
    fmri = preprocessor(np.array(averages, np.float32), np.array(repeats))
    return fmri, voxel_snr(preprocessor(betas), ids)


def _unpaired(
    dataset: BrainDataset, trained: set[str], config: SsAeConfig, size: int, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, object]]:
    """Pictures without responses, uint8 (k, S, S, 3), and where they come from."""
    empty = np.zeros((0, size, size, 3), np.uint8)
    if config.images == NO_IMAGES or (config.images is None and size > SHIPPED_SIZE):
        return empty, {"others": 0}
    if config.images is None:
        shipped = load_stimuli()
        names = shipped.table["stimulus_id"].tolist()
        pictures, source = shipped.images(names, size), "shipped stimuli"
    else:
        pictures, names = _folder(Path(config.images), config.max_images, size, rng)
        source = str(config.images)
    heldout = [
        str(name)
        for name, file in dataset.stimuli["file"].items()
        if isinstance(file, str) and str(name) not in trained
    ]
    known = [fp.thumbnail(to_square(dataset.image(name), size, "resize")) for name in heldout]
    prints = fp.fingerprints(np.stack([fp.thumbnail(picture) for picture in pictures]))
    found = fp.look_alikes(prints, fp.fingerprints(np.stack(known)), rng) if known else None
    pairs = found.pairs if found else []
    if found and pairs and config.images is not None and not found.may_be_chance:
        row, other, alike = pairs[0]
        raise DataError(
            f"Picture {names[row]} of {config.images} shows what stimulus {heldout[other]!r} of {dataset.folder} shows, which "
            f"is not among the training stimuli (similarity {alike:.2f}, {len(pairs)} such): take these out of the folder."
        )
    kept = np.setdiff1d(np.arange(len(pictures)), [row for row, _, _ in pairs])
    return pictures[kept], {"others": len(kept), "source": source, "left_out_as_held_out": len(pairs)}


def _folder(folder: Path, most: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """At most `most` pictures of a folder and those below it, uint8 (k, S, S, 3), and their names."""
    if not folder.is_dir():
        raise DataError(
            f"images={folder} is no folder: expected pictures (.png, .jpg, .jpeg) in it or below it."
        )
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not files:
        raise DataError(f"images={folder} holds no picture: expected .png, .jpg or .jpeg in it or below it.")
    if len(files) > most:
        files = [files[i] for i in np.sort(rng.permutation(len(files))[:most])]
    pictures = np.empty((len(files), size, size, 3), np.uint8)
    for row, path in enumerate(files):
        try:
            with Image.open(path) as picture:
                pictures[row] = to_square(np.asarray(picture.convert("RGB")), size, "resize")
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(
                f"{path} cannot be read as a picture ({error}): replace it or remove it."
            ) from None
    return pictures, [str(path.relative_to(folder)) for path in files]
