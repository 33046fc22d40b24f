"""In which precision pictures are drawn: on which processors, and what the folder says of it."""

from __future__ import annotations

import pytest
import torch

from cadiff.artifacts import read_json
from cadiff.config import load_config
from cadiff.diffuse import precision as module
from cadiff.diffuse.precision import autocast, has_bf16, resolved
from cadiff.diffuse.reconstruct import ReconstructConfig, reconstruct

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def anew():
    has_bf16.cache_clear()
    yield
    has_bf16.cache_clear()


@pytest.mark.parametrize("native", [True, False])
def test_native_is_bf16_where_the_processor_has_it(native, monkeypatch):
    monkeypatch.setattr(module, "has_bf16", lambda: native)
    assert resolved("native", CPU) == ("bf16" if native else "fp32")
    assert resolved("native", CUDA) == "bf16"
    assert resolved("native", torch.device("mps")) == "fp32"
    for device, auto in ((CPU, "fp32"), (CUDA, "bf16")):
        assert [resolved(asked, device) for asked in ("auto", "fp32", "bf16")] == [auto, "fp32", "bf16"]
    with autocast("native", CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(
    ("found", "native"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"architecture": "aarch64"}, False),
    ],
)
def test_the_processor_is_asked_through_pytorch(found, native, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)
    assert has_bf16() is native


@pytest.mark.parametrize(
    ("flags", "native"), [("fpu avx512_bf16 sse", True), ("fpu avx512f sse", False), (None, False)]
)
def test_an_older_pytorch_leaves_it_to_the_kernel(flags, native, monkeypatch, tmp_path):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(module, "CPUINFO", tmp_path / "cpuinfo")
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert has_bf16() is native


def test_the_folder_says_what_was_used(pipeline, dataset_folder, tmp_path, monkeypatch):
    assert load_config(ReconstructConfig, "reconstruct", "cadiff/best").precision == "native"
    pipeline.save_pretrained(tmp_path / "pipeline")
    plain = {"num_inference_steps": 2, "num_images_per_trial": 1, "importance": False, "controls": ()}
    drawn: dict[str, bytes] = {}
    for name, native, asked in (
        ("with", True, "native"),
        ("without", False, "native"),
        ("bf16", False, "bf16"),
        ("auto", True, "auto"),
    ):
        monkeypatch.setattr(module, "has_bf16", lambda native=native: native)
        config = ReconstructConfig.model_validate({**plain, "precision": asked})
        out = reconstruct(config, tmp_path / "pipeline", dataset_folder, tmp_path / name)
        about = read_json(out / "config.json")
        assert about["config"]["precision"] == asked
        assert about["provenance"]["precision"] == ("bf16" if name in ("with", "bf16") else "fp32")
        drawn[name] = b"".join(file.read_bytes() for file in sorted((out / "images").rglob("*.png")))
    assert drawn["with"] == drawn["bf16"] != drawn["without"] == drawn["auto"]
