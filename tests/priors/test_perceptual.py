import torch

from cadiff.priors.perceptual import PerceptualDistance
from cadiff.priors.train_vq import to_range


def test_perceptual_distance_is_zero_for_the_same_picture_and_reaches_the_pixels(shapes):
    distance = PerceptualDistance(32)
    images = to_range(torch.from_numpy(shapes[0][:2]))
    assert distance(images, images).item() == 0
    noisy = (
        images + 0.1 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    distance(noisy, images).backward()
    assert noisy.grad is not None and noisy.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())
