"""A CUDA GPU that is none, for machines without: tensors compute in memory, and say that they lie on "cuda" once they were sent.

What a GPU refuses is refused: operands in two places (single numbers may stay on the CPU), `.numpy()`, generators of the other
place; and while a graph is captured, random draws and all that waits. `waits` counts what the CPU waited for. Kernels and
autocast are the CPU's, and a captured graph is not run again: numbers on a GPU are what `needs_gpu` tests look at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

MADE = [
    *("arange", "as_tensor", "empty", "eye", "from_numpy", "full", "linspace", "ones", "rand", "randint", "randn"),
    *("randperm", "tensor", "zeros"),
]  # fmt: skip
"""Functions of torch that make a tensor."""
LIKE = [f"{name}_like" for name in ("empty", "full", "ones", "rand", "randint", "randn", "zeros")]
"""Those that make it where another one lies."""
CROSSING = {"copy_", "_to_copy", "_foreach_copy_"}
"""Operators that may take tensors in two places."""
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
"""Those that take an index from the CPU into a tensor on the GPU, for which the CPU waits."""
WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "bincount"}
"""Those whose result the CPU needs before it goes on."""
REAL: dict[str, Any] = {name: getattr(Tensor, name) for name in ("to", "numpy", "new_tensor", "tolist", "device")}  # fmt: skip
RealGenerator = torch.Generator


class Refused(RuntimeError):
    """What a GPU would not do."""


class Gpu(TorchDispatchMode):
    """Follows where every storage lies: "cuda", "cpu", or "any" for what libraries make on the way."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Any = WeakIdKeyDictionary()
        self.waits = Counter[str]()
        self.capturing, self.captured = False, 0

    def where(self, x: Tensor) -> str:
        return self.places.get(x.untyped_storage(), "cpu")

    def put(self, x: Tensor, place: str) -> Tensor:
        self.places[x.untyped_storage()] = place
        return x

    def wait(self, what: str) -> None:
        if self.capturing:
            raise Refused(f"{what} while a graph is captured")
        self.waits[what] += 1

    def send(self, x: Tensor, place: str, found: Tensor, *, waits: bool = True) -> Tensor:
        """`found`, which is `x` or made of it, at a place."""
        before = self.where(x)
        if place == before:
            return found
        if found.untyped_storage() is x.untyped_storage():
            found = found.clone(memory_format=torch.preserve_format)
        if waits and before != "any":
            self.wait(f"{before} to {place}")
        return self.put(found, place)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        places, on_gpu = {self.where(x) for x in given if x.dim()} - {"any"}, "cuda" in map(self.where, given)
        if len(places) > 1 and name not in CROSSING and not self._indexes(name, args):
            raise Refused(f"{name} of {[(self.where(x), tuple(x.shape)) for x in given]}")
        if on_gpu and (name in WAITING or (name in INDEXING and (len(places) > 1 or _by_mask(args[1])))):
            self.wait(name)
        if self.capturing and torch.Tag.nondeterministic_seeded in func.tags and "attention" not in name:
            raise Refused(f"{name}, a random draw, while a graph is captured")
        found = func(*args, **(kwargs or {}))
        for made in tree_leaves(found):
            if isinstance(made, Tensor) and made.untyped_storage() not in self.places:
                self.put(made, "cuda" if on_gpu else "cpu" if given else "any")
        return found

    def _indexes(self, name: str, args: Any) -> bool:
        """Whether only indices lie on the CPU."""
        tensors = (args[0], *args[2:3]) if name in INDEXING else ()
        return bool(tensors) and all(self.where(x) != "cpu" or not x.dim() for x in tensors)


def _by_mask(indices: Any) -> bool:
    return any(x is not None and x.dtype == torch.bool for x in indices)


class _Kind(type(torch.Generator)):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, RealGenerator)


class Generator(torch.Generator, metaclass=_Kind):
    """One of the CPU's that knows for where it was made."""

    place: str

    def __new__(cls, device: Any = "cpu") -> Any:
        found: Any = super().__new__(cls)
        found.place = torch.device(device).type
        return found


class Autocast(torch.autocast):
    """The CPU's."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(device_type.replace("cuda", "cpu"), *args, **kwargs)


@contextmanager
def fake_cuda() -> Iterator[Gpu]:
    """Within the block PyTorch sees one GPU; with bf16 of the CPU where a GPU's is asked for."""
    gpu = Gpu()

    def to(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        asked = [*args, kwargs.get("device")]
        places = [torch.device(a).type for a in asked if isinstance(a, str | torch.device)]
        places += [gpu.where(a) for a in asked if isinstance(a, Tensor)]
        if not places or places[0] == "meta":
            return REAL["to"](x, *args, **kwargs)
        moved = [torch.device("cpu") if isinstance(a, str | torch.device) else a for a in args]
        kwargs |= {"device": "cpu"} if kwargs.get("device") is not None else {}
        waits = not kwargs.get("non_blocking") and not any(a is True for a in args)
        return gpu.send(x, places[0], REAL["to"](x, *moved, **kwargs), waits=waits)

    def numpy(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if gpu.where(x) == "cuda":
            raise Refused("can't convert cuda:0 device type tensor to numpy")
        return REAL["numpy"](x, *args, **kwargs)

    def tolist(x: Tensor) -> Any:
        if gpu.where(x) == "cuda":
            gpu.wait("tolist")
        return REAL["tolist"](x)

    def make(real: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        like, wanted = args[0] if args and isinstance(args[0], Tensor) else None, kwargs.get("device")
        place = gpu.where(like) if like is not None else "cpu"
        place = place if wanted is None else torch.device(wanted).type
        chance = kwargs.get("generator")
        if chance is not None and getattr(chance, "place", "cpu") != place:
            raise Refused(f"Expected a {place!r} device type for generator")
        found = real(*args, **(kwargs | {"device": "cpu"} if place == "cuda" and like is None else kwargs))
        return found if found.is_meta or found is like else gpu.put(found, place)

    def device(x: Tensor) -> torch.device:
        found = REAL["device"].__get__(x)
        return torch.device("cuda", 0) if found.type == "cpu" and gpu.where(x) == "cuda" else found

    def rng_state(*_: Any) -> Tensor:
        gpu.wait("the random state")
        return torch.empty(0)

    @contextmanager
    def capture(*_: Any, **__: Any) -> Iterator[None]:
        gpu.capturing = True
        try:
            yield
        finally:
            gpu.capturing, gpu.captured = False, gpu.captured + 1

    def stream(*_: Any) -> Any:
        return SimpleNamespace(wait_stream=lambda _: None)

    of_tensors = {
        "to": to, "cpu": lambda x: gpu.send(x, "cpu", x), "cuda": lambda x: to(x, "cuda"), "pin_memory": lambda x: x,
        "numpy": numpy, "tolist": tolist, "device": property(device),
        "new_tensor": lambda x, *a, **k: gpu.put(REAL["new_tensor"](x, *a, **k), gpu.where(x)),
    }  # fmt: skip
    of_cuda = {
        "is_available": lambda: True, "_initialized": True, "device_count": lambda: 1, "get_device_name": lambda *_: "none",
        "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None), "graph": capture, "Stream": stream, "current_stream": stream,
        "stream": nullcontext, "device": nullcontext, "synchronize": lambda *_: None, "get_rng_state": rng_state,
        "set_rng_state": lambda *_: None, "manual_seed": lambda _: None, "manual_seed_all": lambda _: None,
    }  # fmt: skip
    of_torch = {name: partial(make, getattr(torch, name)) for name in MADE + LIKE}
    of_torch |= {"Generator": Generator, "autocast": Autocast}
    with ExitStack() as undone_after:
        for owner, table in ((Tensor, of_tensors), (torch.cuda, of_cuda), (torch, of_torch)):
            for name, value in table.items():
                undone_after.enter_context(patch.object(owner, name, value))
        undone_after.enter_context(gpu)
        yield gpu
