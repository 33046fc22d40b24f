"""Feature distance between pictures, for training autoencoders of photos.

In the manner of LPIPS (Zhang et al. 2018) without its learned weights, on EfficientNet-Lite0's inner maps. Lite0 also sees for
the simulator; the default judge of reconstructions (Lite2) takes no part, so that no model is trained on its own judge.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cadiff.vision import load_classifier

EYE = "efficientnet-lite0"
"""The network whose maps are compared."""


class PerceptualDistance(nn.Module):
    """Squared difference of inner maps, summed over channels and maps, averaged over places and pictures.

    The maps are the stem's and the last of each of the first widths, scaled to unit length over channels. `size`: pixels
    that pictures are brought to first. Frozen; gradients reach the pictures.
    """

    def __init__(self, size: int, num_maps: int = 6) -> None:
        super().__init__()
        self.size = size
        self.network: Any = load_classifier(EYE, device="cpu")._network
        widths = [block._block_args.output_filters for block in self.network._blocks]
        ends = [place for place in range(len(widths) - 1) if widths[place] != widths[place + 1]]
        self.taps = ends[:num_maps]

    def features(self, images: Tensor) -> list[Tensor]:
        """Maps of images (B, 3, S, S) in [-1, 1], unit length over channels."""
        net = self.network
        x = F.interpolate(images, size=(self.size, self.size), mode="bilinear", align_corners=False)
        x = net._swish(net._bn0(net._conv_stem(x)))
        maps = [x]
        for place, block in enumerate(net._blocks[: self.taps[-1] + 1]):
            x = block(x)
            if place in self.taps:
                maps.append(x)
        return [F.normalize(value.float(), dim=1, eps=1e-3) for value in maps]

    def forward(self, decoded: Tensor, images: Tensor) -> Tensor:
        """Mean distance of two batches."""
        self.to(images.device)
        with torch.no_grad():
            target = self.features(images)
        pairs = zip(self.features(decoded), target, strict=True)
        return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in pairs]).sum()
