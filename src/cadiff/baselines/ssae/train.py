"""The two stages of SS-AE: the encoder by pairs alone, then the decoder by pairs and by both cycles, the encoder frozen.

Pictures and responses lie on the device; what travels in a step are the numbers of the rows, and nothing comes back.
B pictures, V voxels, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cadiff.baselines.ssae.losses import voxel_loss
from cadiff.runs import RunFolder
from cadiff.training import FitConfig, epoch_batches, fit

See = Callable[[Tensor], list[Tensor]]
"""Pictures (B, 3, S, S) in [0, 1] -> maps."""
Encode = Callable[..., Tensor]
"""Maps -> responses (B, V)."""
CompareImages = Callable[[Tensor, Tensor, Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Drawn and shown pictures and the maps of both -> scalar."""


@dataclass(frozen=True, eq=False)
class Learnt:
    """Pairs, responses without pictures, and pictures without responses, on the device."""

    betas: Tensor
    """(n, V)."""
    picture: Tensor
    """(n,) int64 rows of `pictures`."""
    fmri: Tensor
    """(m, V)."""
    pictures: Tensor
    """uint8 (N, 3, S, S)."""

    def images(self, rows: Tensor) -> Tensor:
        """float32 (B, 3, S, S) in [0, 1]."""
        return self.pictures[rows].float() / 255.0


@dataclass(frozen=True)
class Weights:
    """Of the three terms of the decoder's loss, and of the cosine of voxels."""

    pairs: float
    images: float
    fmri: float
    cosine: float


def train_encoder(
    encoder: nn.Module,
    see: See,
    learnt: Learnt,
    config: FitConfig,
    *,
    shift: int,
    cosine_weight: float,
    penalty: Callable[[], Tensor],
    run: RunFolder,
) -> None:
    """E by pairs, pictures shifted by up to `shift` pixels; the error is squared."""
    indices = epoch_batches(len(learnt.betas), config.batch_size, config.seed)

    def batches(step: int) -> Tensor:
        return torch.from_numpy(indices(step))

    def loss(rows: Tensor, generator: torch.Generator) -> Mapping[str, Tensor]:
        images = shifted(learnt.images(learnt.picture[rows]), shift, generator)
        with torch.no_grad():
            maps = see(images)
        error = voxel_loss(
            encoder(maps, _on(rows.device, generator)), learnt.betas[rows], cosine_weight=cosine_weight
        )
        costs = penalty()
        return {"loss": error + costs, "voxels": error, "penalty": costs}

    fit(loss, {"encoder": encoder}, batches, config, run=run, description="encoder")


def train_decoder(
    decoder: nn.Module,
    encode: Encode,
    see: See,
    learnt: Learnt,
    config: FitConfig,
    *,
    fmri_batch: int,
    images_batch: int,
    weights: Weights,
    snr: Tensor,
    compare: CompareImages,
    penalty: Callable[[], Tensor],
    run: RunFolder,
) -> None:
    """D by pairs, D(r) ~ x, and by both cycles: D(E(x)) ~ x and E(D(r)) ~ r; `encode` is frozen.

    Args:
        fmri_batch, images_batch: responses without pictures and pictures without responses in a step, beside
            `config.batch_size` pairs; a term of weight 0 is not computed.
        snr: (V,) weights of the voxels. compare: distance of pictures. penalty: on the decoder's weights.
    """
    sizes = (
        config.batch_size if weights.pairs else 0,
        images_batch if weights.images else 0,
        fmri_batch if weights.fmri else 0,
    )
    counts = (len(learnt.betas), len(learnt.pictures), len(learnt.fmri))
    seeds = np.random.SeedSequence(config.seed).generate_state(len(sizes))
    draws = [
        epoch_batches(count, size, int(seed)) if size else None
        for count, size, seed in zip(counts, sizes, seeds, strict=True)
    ]

    def batches(step: int) -> tuple[Tensor, ...]:
        rows = [draw(step) if draw else np.zeros(0, np.int64) for draw in draws]
        return tuple(torch.from_numpy(row) for row in rows)

    def loss(rows: tuple[Tensor, ...], generator: torch.Generator) -> Mapping[str, Tensor]:
        pairs, free, alone = rows
        paired, unpaired = len(pairs), len(free)
        measured = learnt.fmri[alone]
        shown = learnt.images(torch.cat([learnt.picture[pairs], free]))
        with torch.no_grad():
            shown_maps = see(shown)
            imagined = encode([each[paired:] for each in shown_maps]) if unpaired else measured[:0]
        drawn = decoder(torch.cat([learnt.betas[pairs], imagined, measured]))
        maps = see(drawn)

        def images(part: slice) -> Tensor:
            ours, theirs = ([each[part] for each in every] for every in (maps, shown_maps))
            return compare(drawn[part], shown[part], ours, theirs)

        terms = {"penalty": penalty()}
        total = terms["penalty"]
        if paired:
            terms["pairs"] = images(slice(0, paired))
            total = total + weights.pairs * terms["pairs"]
        if unpaired:
            terms["images"] = images(slice(paired, paired + unpaired))
            total = total + weights.images * terms["images"]
        if len(alone):
            again = encode([each[paired + unpaired :] for each in maps])
            terms["fmri"] = voxel_loss(again, measured, cosine_weight=weights.cosine, weights=snr)
            total = total + weights.fmri * terms["fmri"]
        return {"loss": total, **terms}

    fit(loss, {"decoder": decoder}, batches, config, run=run, description="decoder")


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Pictures (B, 3, S, S), each moved by up to `most` pixels down and right or back; edges are repeated."""
    if not most:
        return images
    side = images.shape[-1]
    moves = torch.randint(-most, most + 1, (2, len(images)), generator=generator).to(images.device)
    places = (torch.arange(side, device=images.device) + moves[..., None]).clamp(0, side - 1)  # (2, B, S)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, -1)[number, places[0][:, :, None], places[1][:, None, :]].movedim(-1, 1)


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """A generator on the device that goes on from one on the CPU."""
    seed = int(torch.randint(2**62, (1,), generator=generator))
    return torch.Generator(device).manual_seed(seed)
