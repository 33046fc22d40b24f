"""AlexNet and VGG16 (their convolutions), and the perceptual distance LPIPS on them.

Krizhevsky 2014 ("one weird trick", torchvision's AlexNet); Simonyan & Zisserman 2015; Zhang et al. 2018 (LPIPS, Eq. 1, version
0.1). Weights have torchvision's names, `features.0.weight` and so on; LPIPS's five linear heads are `lpips.0` to `lpips.4`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from cadiff.artifacts import sha256_file
from cadiff.errors import ArtifactError, DataError
from cadiff.eyes.eye import Eye
from cadiff.eyes.pixels import Preprocessing, square
from cadiff.eyes.weights import fill, read_weights

# (channels in, out, kernel, stride, padding), or (kernel, stride) of a max-pooling; every convolution has a ReLU behind it.
ALEXNET = (
    (3, 64, 11, 4, 2), (3, 2), (64, 192, 5, 1, 2), (3, 2),
    (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1), (3, 2),
)  # fmt: skip
VGG16 = (
    (3, 64, 3, 1, 1), (64, 64, 3, 1, 1), (2, 2), (64, 128, 3, 1, 1), (128, 128, 3, 1, 1), (2, 2),
    (128, 256, 3, 1, 1), (256, 256, 3, 1, 1), (256, 256, 3, 1, 1), (2, 2),
    (256, 512, 3, 1, 1), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), (2, 2),
    (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), (512, 512, 3, 1, 1), (2, 2),
)  # fmt: skip

LPIPS_TAPS = {"alexnet": (1, 4, 7, 9, 11), "vgg16": (3, 8, 15, 22, 29)}
"""The ReLUs that LPIPS compares, by their place in `features`."""

SMALLEST = 32
"""Side in pixels below which AlexNet's second pooling has nothing left."""
TABLE_BYTES = 1 << 30
"""Memory for the maps of targets that a table of distances keeps; more targets take several passes over the pictures."""
PIECE = 1 << 15
"""Products of maps are summed in single precision over so many places only: millions of terms lose digits."""


class Chain(nn.Module):
    """Convolutions, ReLUs and max-poolings one after the other; gives the values at some places.

    taps: name of a layer -> place in `features`. What lies behind the last tap is never computed.
    """

    def __init__(self, plan: tuple[tuple[int, ...], ...], taps: Mapping[str, int]):
        super().__init__()
        steps: list[nn.Module] = []
        for step in plan:
            if len(step) == 2:
                steps.append(nn.MaxPool2d(*step))
            else:
                channels_in, channels_out, kernel, stride, padding = step
                steps += [nn.Conv2d(channels_in, channels_out, kernel, stride, padding), nn.ReLU()]
        self.features = nn.Sequential(*steps)
        self._names = {place: name for name, place in taps.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Normalised pictures (B, 3, h, w) -> maps (B, C, h', w') by name."""
        found = {}
        for place, step in enumerate(self.features):
            x = step(x)
            if place in self._names:
                found[self._names[place]] = x
            if len(found) == len(self._names):
                break
        return found


def load_alexnet(path: Path, device: str | torch.device | None = None) -> Eye:
    """AlexNet with the layers `relu2` and `relu5`: MindEye's AlexNet(2) and AlexNet(5), torchvision's `features.4` and `.11`.

    Both are maps after convolution and ReLU, before pooling, of pictures whose shortest edge is 256 pixels: 184,512 and
    57,600 features a picture.
    """
    network = Chain(ALEXNET, {"relu2": 4, "relu5": 11})
    weights = read_weights(path)
    fill(network, weights, source=path, layout="torchvision's alexnet", unused=("classifier.", "lpips."))
    prepare = Preprocessing(square(256), square(256))
    return Eye("alexnet", network, prepare, ("relu2", "relu5"), weights=(Path(path),), device=device)


class Lpips:
    """Learned perceptual distance between pictures; lower is better, 0 for equal pictures (Zhang et al. 2018, Eq. 1).

    Pictures are compared at the size they have. `name` goes into protocol strings.
    """

    higher_is_better = False

    def __init__(
        self,
        path: Path,
        backbone: str,
        weights: Mapping[str, Tensor],
        device: str | torch.device | None = None,
    ):
        self.name = f"lpips0.1-{backbone}"
        self.weights = (Path(path),)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        taps = {str(i): place for i, place in enumerate(LPIPS_TAPS[backbone])}
        plan = {"alexnet": ALEXNET, "vgg16": VGG16}[backbone]
        network = Chain(plan, taps)
        layout = f"torchvision's {backbone} with LPIPS heads"
        fill(network, weights, source=path, layout=layout, unused=("classifier.", "lpips."))
        self._network = network.eval().requires_grad_(False).to(self.device)
        widths = [network.features[place - 1].out_channels for place in taps.values()]
        self._heads = []
        for i, width in enumerate(widths):
            head = weights.get(f"lpips.{i}")
            if head is None or head.shape != (width,):
                raise ArtifactError(
                    f"{path} lacks the LPIPS head lpips.{i} of {width} numbers: make the file with "
                    "recipes/alexnet_weights.py, which writes backbone and heads."
                )
            self._heads.append(head.to(self.device))
        self._prepare = Preprocessing(None)
        self.preprocessing = f"the size they have; {self._prepare}"

    def distances(
        self, pictures: np.ndarray, targets: np.ndarray, *, batch_size: int = 16, progress: bool = False
    ) -> np.ndarray:
        """Distance of every picture to its target, `(n,)`; both uint8 `(n, H, W, 3)`, at least 32 pixels a side."""
        if pictures.shape != targets.shape:
            raise DataError(
                f"LPIPS compares pictures of one shape; got {pictures.shape} and {targets.shape}."
            )
        _check_size(pictures)
        found = [np.zeros(0)]
        starts = range(0, len(pictures), batch_size)
        hidden = None if progress else True
        for start in tqdm(starts, desc=self.name, unit="batch", disable=hidden, leave=False):
            part = slice(start, start + batch_size)
            with torch.inference_mode():
                found.append(self._distances(pictures[part], targets[part]).double().cpu().numpy())
        return np.concatenate(found)

    def table(self, pictures: np.ndarray, targets: np.ndarray, *, batch_size: int = 16) -> np.ndarray:
        """Distance of every picture `(m, H, W, 3)` to every target `(n, H, W, 3)`: `(m, n)`; arguments as in `distances`.

        LPIPS is a weighted squared distance of maps of unit length, |a|^2 + |b|^2 - 2 ab, so that a table takes one look at each
        picture and a matrix product. Summed in single precision: equal to `distances` within a few 1e-6.
        """
        if pictures.shape[1:] != targets.shape[1:]:
            raise DataError(
                f"LPIPS compares pictures of one shape; got {pictures.shape[1:]} and {targets.shape[1:]}."
            )
        _check_size(targets)
        columns = []
        with torch.inference_mode():
            for theirs, their_length in self._blocks(targets, batch_size):
                rows = []
                for start in range(0, len(pictures), batch_size):
                    ours, _, length = self._weigh(pictures[start : start + batch_size])
                    pieces = zip(ours.split(PIECE, dim=1), theirs.split(PIECE, dim=1), strict=True)
                    product = torch.stack([a @ b.T for a, b in pieces]).double().sum(dim=0)
                    rows.append(length[:, None] + their_length[None] - 2.0 * product)
                columns.append(torch.cat(rows).clamp(min=0.0).cpu().numpy())  # rounding
        return np.concatenate(columns, axis=1)

    def digest(self) -> dict[str, str]:
        """SHA-256 of the file of weights, by name."""
        return {path.name: sha256_file(path) for path in self.weights}

    def _distances(self, pictures: np.ndarray, targets: np.ndarray) -> Tensor:
        ours, theirs = self._maps(pictures), self._maps(targets)
        total = torch.zeros(len(pictures), device=self.device)
        for head, a, b in zip(self._heads, ours, theirs, strict=True):
            total = total + F.conv2d((a - b).square(), head[None, :, None, None]).mean(dim=(1, 2, 3))
        return total

    def _blocks(self, targets: np.ndarray, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Weighted maps (B, D) and squared lengths (B,) of the targets, as many at a time as fit in `TABLE_BYTES`."""
        held: list[tuple[Tensor, Tensor]] = []
        for start in range(0, len(targets), batch_size):
            held.append(self._weigh(targets[start : start + batch_size])[1:])
            full = (len(held) + 1) * held[0][0].nbytes > TABLE_BYTES
            if full or start + batch_size >= len(targets):
                yield torch.cat([maps for maps, _ in held]), torch.cat([length for _, length in held])
                held = []

    def _weigh(self, images: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (B, D) of unit length, the same times their heads' shares of the mean, and the squared lengths (B,)."""
        maps = self._maps(images)
        plain = torch.cat([x.flatten(1) for x in maps], dim=1)
        shares = [
            x * head[:, None, None] / x[0, 0].numel() for x, head in zip(maps, self._heads, strict=True)
        ]
        weighted = torch.cat([x.flatten(1) for x in shares], dim=1)
        return plain, weighted, (plain * weighted).sum(dim=1)

    def _maps(self, images: np.ndarray) -> list[Tensor]:
        """The five maps (B, C, h, w), of unit length over channels."""
        found = self._network(self._prepare(images, self.device))
        return [_unit(found[str(i)]) for i in range(len(self._heads))]


def load_lpips(path: Path, device: str | torch.device | None = None) -> Lpips:
    """LPIPS from a file with backbone and heads; which backbone, its first convolution says.

    Raises `ArtifactError` for other files.
    """
    weights = read_weights(path)
    first = weights.get("features.0.weight")
    kernel = None if first is None or first.ndim != 4 else first.shape[-1]
    backbone = {11: "alexnet", 3: "vgg16"}.get(kernel or 0)
    if backbone is None:
        raise ArtifactError(
            f"{path} holds neither AlexNet nor VGG16 in torchvision's names: make it with recipes/alexnet_weights.py."
        )
    return Lpips(path, backbone, weights, device)


def _check_size(pictures: np.ndarray) -> None:
    if len(pictures) and min(pictures.shape[1:3]) < SMALLEST:
        raise DataError(
            f"LPIPS needs pictures of at least {SMALLEST} pixels a side; these are {pictures.shape[1:3]}."
        )


def _unit(maps: Tensor) -> Tensor:
    """Unit length over channels, as LPIPS defines it."""
    return maps / (maps.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
