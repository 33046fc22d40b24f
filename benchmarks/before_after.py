"""Before and after: every way of saving time on a CPU that has no script of its own, against doing without, in one run.

Run: python benchmarks/before_after.py [--quick] [--threads 1] [--repeats 5] [--only WORD ...]
     (8 minutes of processor time on one thread; --quick under one, with small batches)

Both ways of a case take turns in one process, so that the ratio of a pair feels little of what the machine does besides. Printed:
medians of processor time, the median of the pairs' ratios with the smallest and the largest, and the same of wall time. Above 1:
after is faster. Networks have the sizes of the demo's encoder (4 x 128, 97 tokens) and of the shipped prior; 77 context tokens
unless said.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from functools import cache
from statistics import median
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from cadiff.attend.stage import AttendConfig
from cadiff.contrast.mae import FmriMaeConfig
from cadiff.contrast.stage import ContrastConfig
from cadiff.diffuse import sampling
from cadiff.diffuse.conditioner import Condition
from cadiff.diffuse.sampling import denoise, make_scheduler
from cadiff.diffuse.settings import DiffuseConfig
from cadiff.heap import keep_freed_memory
from cadiff.onednn import onednn_linears
from cadiff.plan.machines import device_name
from cadiff.plan.workloads import WORKLOADS, Models, Workload
from cadiff.priors.load import ImagePrior, load_prior
from cadiff.training import step_generator

DEMO = {"embed_dim": 128, "depth": 4, "num_heads": 4}
MAE = FmriMaeConfig(num_voxels=1552, decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4, **DEMO)
PHASE_1 = ContrastConfig(mae=MAE)
PHASE_2 = AttendConfig(decoder_depth=2, image_decoder_depth=2, cross_depth=1)
Task = Callable[[], object]
Pair = tuple[Task, Task]
"""The same work before and after."""


@cache
def prior() -> ImagePrior:
    found = load_prior("shipped")
    networks: tuple[Any, ...] = (found.unet, found.vqvae)
    for network in networks:
        network.to(memory_format=torch.channels_last)
    return found


def training_step(work: Workload, batch: Any, *, bf16: bool = False) -> Task:
    """Loss and gradients, without the optimiser."""
    for module in work.modules.values():
        module.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            work.loss(batch, step_generator(0, 0))["loss"].backward()
        for module in work.modules.values():
            module.zero_grad(set_to_none=True)

    return step


def tuning(size: int, *, every_gradient: bool = False, bf16: bool = False, **settings: Any) -> Task:
    """A step of the third stage."""
    work = WORKLOADS["diffuse"](DiffuseConfig(**settings), Models(MAE))
    unet: Any = work.modules["model"].get_submodule("unet")
    unet.to(memory_format=torch.channels_last)
    if every_gradient:
        unet.requires_grad_(True)
    return training_step(work, work.batch(size), bf16=bf16)


def tunings(size: int, before: dict[str, Any], after: dict[str, Any]) -> Pair:
    return tuning(size, **before), tuning(size, **after)


def kept_latents(size: int) -> Pair:
    """Before: the step's crops are encoded in the step, as the released code does."""
    step, pictures = tuning(size), torch.rand(size, 3, 64, 64) * 2 - 1

    def encoding() -> None:
        prior().encode(pictures)
        step()

    return encoding, step


def kept_features(size: int) -> Pair:
    """Before: phase 2 puts whole pictures through the frozen image encoder in every step."""
    work = WORKLOADS["attend"](PHASE_2, Models(MAE))
    batch: Mapping[str, Tensor] = work.batch(size)
    without = {key: value for key, value in batch.items() if key != "support"}
    return training_step(work, without), training_step(work, batch)


def products(size: int, stage: str, config: Any) -> Pair:
    """Before: linear layers as PyTorch computes them."""
    work = WORKLOADS[stage](config, Models(MAE))
    step = training_step(work, work.batch(size))

    def by_onednn() -> None:
        with onednn_linears(work.modules.values()):
            step()

    return step, by_onednn


def changed(draw: Task, **before: Any) -> Pair:
    """Before: with other values of these names in `cadiff.diffuse.sampling`."""

    def as_before() -> object:
        with mock.patch.multiple(sampling, **before):
            return draw()

    return as_before, draw


def drawn_by_onednn(size: int) -> Pair:
    return changed(drawing(size), onednn_linears=lambda _: nullcontext())


def null_once(size: int) -> Pair:
    """Before: pictures of which a third is under the null go through the network twice, also those."""

    def everyone(null: Condition, condition: Condition) -> Tensor:
        return torch.arange(len(condition.context))

    return changed(drawing(size, tokens=8, controls=True), _other_than=everyone)


def in_pieces(size: int) -> Pair:
    return changed(drawing(size, tokens=8), ROWS=2 * size)


def optimiser(size: int, before: str, after: str) -> Pair:
    """One step of AdamW over the weights that the third stage tunes."""
    del size  # the same for every batch
    work = WORKLOADS["diffuse"](DiffuseConfig.model_validate({}), Models(MAE))
    trained = [p for p in work.modules["model"].parameters() if p.requires_grad]

    def stepping(kind: str) -> Task:
        parameters = [nn.Parameter(p.detach().clone()) for p in trained]
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        return torch.optim.AdamW(parameters, fused=kind == "fused", foreach=kind == "foreach").step

    return stepping(before), stepping(after)


def drawing(
    size: int,
    tokens: int = 77,
    steps: int = 4,
    *,
    bf16: bool = False,
    guided: bool = True,
    controls: bool = False,
) -> Task:
    """`size` pictures in one batch, as latents; dpm++. With `controls` every third is under the null."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(size, *prior().latent_shape, generator=rng)
    condition, null = (
        Condition(
            torch.randn(size, tokens, prior().context_dim, generator=rng), torch.zeros(size, prior().time_dim)
        )
        for _ in range(2)
    )
    if controls:
        for ours, theirs in zip(condition, null, strict=True):
            ours[::3] = theirs[::3]
    return lambda: denoise(
        prior().unet,
        make_scheduler("dpm++", prior().scheduler.config),
        noise,
        condition,
        num_inference_steps=steps,
        guidance_scale=2.0 if guided else 1.0,
        null=null,
        precision="bf16" if bf16 else "fp32",
    )


def projected_once(size: int, tokens: int, bf16: bool = False) -> Pair:
    """Before: keys and values of the context are computed in each of 8 steps."""
    draw = drawing(size, tokens, steps=8, bf16=bf16)

    def recomputing() -> object:
        with mock.patch.object(sampling, "static_context", lambda *_: nullcontext()):
            return draw()

    return recomputing, draw


def drawn_in_bf16(size: int) -> Pair:
    return drawing(size), drawing(size, bf16=True)


def channels_last(size: int) -> Pair:
    """One call of the U-Net, weights and latents in either layout."""
    unet: Any = prior().unet
    plain = deepcopy(unet).to(memory_format=torch.contiguous_format)
    x, context = torch.randn(size, *prior().latent_shape), torch.randn(size, 77, prior().context_dim)
    time_vector = torch.zeros(size, prior().time_dim)

    def call(network: Any, layout: torch.memory_format) -> Task:
        def forward() -> None:
            given = x.to(memory_format=layout)
            with torch.no_grad():
                network(given, 10, encoder_hidden_states=context, class_labels=time_vector)

        return forward

    return call(plain, torch.contiguous_format), call(unet, torch.channels_last)


def drawn_together(size: int) -> Pair:
    """Before: one picture at a time."""
    one = drawing(1, steps=2, guided=False)
    return lambda: [one() for _ in range(size)], drawing(size, steps=2, guided=False)


def decoded_together(size: int) -> Pair:
    latents = torch.randn(size, *prior().latent_shape)
    return lambda: prior().decode(latents, batch_size=1), lambda: prior().decode(latents)


CASES: dict[str, tuple[Callable[..., Pair], int, tuple[Any, ...]]] = {
    "phase 2: features of whole pictures kept, not recomputed": (kept_features, 16, ()),
    "tuning: gradients of tuned weights only, not of the whole U-Net": (
        tunings,
        16,
        ({"every_gradient": True}, {}),
    ),
    "tuning: way up only, not all blocks": (tunings, 16, ({}, {"unet_blocks": "up"})),
    "tuning: bf16, not fp32": (tunings, 16, ({}, {"bf16": True})),
    "tuning: latents of crops kept, not encoded in each step": (kept_latents, 16, ()),
    "phase 1: linear layers by oneDNN, not MKL": (products, 64, ("contrast", PHASE_1)),
    "phase 2: linear layers by oneDNN, not MKL": (products, 16, ("attend", PHASE_2)),
    "tuning: linear layers by oneDNN, not MKL": (products, 16, ("diffuse", DiffuseConfig(unet_blocks="up"))),
    "drawing: linear layers by oneDNN, not MKL": (drawn_by_onednn, 16, ()),
    "drawing: pictures under the null, one in three, through the network once": (null_once, 48, ()),
    "drawing: 32 rows at a time, not 96": (in_pieces, 48, ()),
    "AdamW: fused, not a loop over weights": (optimiser, 1, ("loop", "fused")),
    "AdamW: fused, not foreach": (optimiser, 1, ("foreach", "fused")),
    "drawing: keys and values once a batch, 77 tokens": (projected_once, 16, (77,)),
    "drawing: keys and values once a batch, 77 tokens, bf16": (projected_once, 16, (77, True)),
    "drawing: keys and values once a batch, 8 tokens": (projected_once, 16, (8,)),
    "drawing: bf16, not fp32": (drawn_in_bf16, 16, ()),
    "drawing: channels last, not the default layout": (channels_last, 16, ()),
    "drawing: together, not one picture at a time": (drawn_together, 64, ()),
    "decoding: together (16 at most), not one picture at a time": (decoded_together, 64, ()),
}
"""What -> how its two ways are made from a batch size, the batch, further arguments."""


def interleaved(pair: Pair, repeats: int) -> tuple[list[list[float]], list[list[float]]]:
    """Processor and wall seconds of both ways, each beginning every other time; the first turn is warm-up."""
    processor, wall = ([[], []] for _ in range(2))
    for turn in range(repeats + 1):
        for way in (0, 1) if turn % 2 else (1, 0):
            start = time.process_time(), time.perf_counter()
            pair[way]()
            if turn:
                processor[way].append(time.process_time() - start[0])
                wall[way].append(time.perf_counter() - start[1])
    return processor, wall


def ratios(times: list[list[float]]) -> str:
    found = [before / after for before, after in zip(*times, strict=True)]
    return f"{median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small batches, two pairs: does it all run?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", default=[""], help="cases that contain one of these words")
    args = parser.parse_args()
    keep_freed_memory()  # as the command does
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    repeats = 2 if args.quick else args.repeats
    device = device_name(torch.device("cpu"))  # with the threads
    print(f"{device}, PyTorch {torch.__version__}, {repeats} pairs a case\n")
    print("| what | batch | before, ms | after, ms | ratio, processor time | ratio, wall time |")
    print("|---|---|---|---|---|---|")
    for name, (make, batch, more) in CASES.items():
        if any(word in name for word in args.only):
            size = min(batch, 2) if args.quick else batch
            processor, wall = interleaved(make(size, *more), repeats)
            cells = [f"{1000 * median(times):,.1f}" for times in processor]
            cells += [ratios(processor), ratios(wall)]
            print(f"| {name} | {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
