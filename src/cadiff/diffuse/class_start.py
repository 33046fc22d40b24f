"""The condition starts at the class that the betas name, by way of an encoding model; a variant of ours.

A pipeline tuned with `label_start` begins its context at a ridge prediction of the label embedding, which hardly leaves the
classes that were trained on. In its place can stand the embedding of the most likely class (`cadiff.encoding.classes`), each
class described by pictures that the pipeline draws of it. What the fMRI encoder adds is kept. Every condition takes the class
that its own betas name, `shuffled` that of the shuffled ones; conditions that read no betas are as before.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cadiff.data.dataset import BrainDataset
from cadiff.diffuse.controls import Starts
from cadiff.diffuse.pipeline import FmriToImagePipeline
from cadiff.diffuse.sampling import sample_noise
from cadiff.diffuse.settings import ReconstructConfig
from cadiff.encoding import EncodingModel
from cadiff.encoding.classes import ClassPosterior
from cadiff.encoding.pictures import pictures_of_classes
from cadiff.errors import ConfigError
from cadiff.progress import counted

OTHER_NOISE = 1_000_000  # added to the seed: pictures of classes never have the noise of a reconstruction


def class_starts(
    pipe: FmriToImagePipeline, model: EncodingModel, config: ReconstructConfig, data: BrainDataset
) -> Starts:
    """Describes every class of the prior by pictures, drawn here or given by `config.class_images`.

    Raises:
        ConfigError: a pipeline that was not tuned with label_start, or whose prior has no classes.
        DataError: pictures that cannot be read, or a test stimulus among them.
    """
    conditioner = pipe.conditioner
    classes = (conditioner.config["labels"] or {"classes": []})["classes"]
    if conditioner.start is None or not classes:
        raise ConfigError(
            "class_start takes the place of the label start, and this pipeline has none: tune one with label_start=true."
        )
    if config.class_images is None:
        images, labels = _drawn(pipe, config, len(classes))
    else:
        images, labels = pictures_of_classes(config.class_images, classes, data, pipe.image_size)
    posterior = ClassPosterior.fit(model, images, labels)
    table = conditioner.get_buffer("label_embedding")

    def starts_of(betas: np.ndarray, repeats: np.ndarray) -> Tensor:
        return table[torch.from_numpy(posterior.most_likely(betas, repeats)).to(table.device)]

    return starts_of


def _drawn(
    pipe: FmriToImagePipeline, config: ReconstructConfig, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (k, H, W, 3) of every class and their classes (k,)."""
    images, labels = [], np.repeat(np.arange(num_classes), config.class_pictures)
    starts = range(0, len(labels), config.batch_size)
    with counted("pictures of classes", len(starts)) as step:
        for first in starts:
            part = labels[first : first + config.batch_size]
            noise = [
                sample_noise(
                    int(label),
                    (first + i) % config.class_pictures,
                    pipe.latent_shape,
                    config.seed + OTHER_NOISE,
                )
                for i, label in enumerate(part)
            ]
            drawn = pipe(
                condition=pipe.conditioner.label_condition(part.tolist()),
                noise=torch.stack(noise)[:, None],
                num_inference_steps=config.num_inference_steps,
                guidance_scale=config.guidance_scale,
                scheduler=config.scheduler,
                batch_size=config.batch_size,
                precision=config.precision,
                on_step=lambda: None,
            )
            images.append(drawn[:, 0])
            step()
    return np.concatenate(images), labels
