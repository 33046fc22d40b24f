"""What tests of `cadiff.frozen` do in processes of their own, which import it by this module's name."""

import os
import resource
import time
from contextlib import redirect_stderr
from pathlib import Path

import torch
from torch import nn

from cadiff.errors import DataError
from cadiff.frozen import kept


def network(seed: int = 0) -> nn.Linear:
    linear = nn.Linear(3, 4)
    for weight in linear.parameters():
        nn.init.normal_(weight, generator=torch.Generator().manual_seed(seed))
    return linear


def fill(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    os.environ["CADIFF_CACHE"] = str(folder / "cache")
    values = torch.arange(100_000.0)
    with (folder / "said").open("w") as said, redirect_stderr(said):
        for about in ({}, {"a": 1}):
            assert torch.equal(kept("answers", network(), about, lambda: values.clone()), values)


def ask(folder: Path, number: int) -> None:
    def make() -> torch.Tensor:
        (folder / f"made-{number}").write_text("")
        time.sleep(1)
        return torch.arange(50_000.0)

    os.environ["CADIFF_CACHE"] = str(folder / "cache")
    assert torch.equal(kept("answers", network(), {}, make), torch.arange(50_000.0))


def together(folder: Path, where: list[str], fails: bool) -> dict:
    rank = int(os.environ["RANK"])
    os.environ["CADIFF_CACHE"] = where[rank]
    calls = []

    def make() -> torch.Tensor:
        calls.append(rank)
        if fails:
            raise DataError("a picture is gone")
        return torch.arange(10.0)

    try:
        values = kept("answers", network(), {}, make)
    except DataError as error:
        return {"error": str(error), "calls": len(calls)}
    return {"values": values.clone(), "calls": len(calls)}
