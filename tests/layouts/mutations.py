"""Ways in which files go wrong between a lab and its user, by accident or on purpose: bytes in, bytes out."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

Mutation = Callable[[bytes, np.random.Generator, Path], bytes]


class _Code:
    """Unpickling this runs code: it makes the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def truncate(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    return content[: int(rng.integers(0, max(len(content), 1)))]


def empty(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    return b""


def flip_bytes(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    changed = np.frombuffer(content, np.uint8).copy()
    if len(changed):
        where = rng.integers(0, len(changed), int(rng.integers(1, 9)))
        changed[where] = rng.integers(0, 256, len(where))
    return changed.tobytes()


def flip_header(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    return flip_bytes(content[:512], rng, marker) + content[512:]


def overwrite_run(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    start = int(rng.integers(0, max(len(content), 1)))
    return content[:start] + rng.bytes(64) + content[start + 64 :]


def cut_out(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    start = int(rng.integers(0, max(len(content), 1)))
    return content[:start] + content[start + int(rng.integers(1, 100)) :]


def claim_more(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    """Some number written as text becomes ten billion, as in a numpy header's shape."""
    numbers = list(re.finditer(rb"\d+", content[:4096]))
    if not numbers:
        return content[:16] + b"\xff" * 16 + content[32:]
    chosen = numbers[int(rng.integers(0, len(numbers)))]
    return content[: chosen.start()] + b"9999999999" + content[chosen.end() :]


def swap_endian(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    return content.replace(b"<f", b">f").replace(b"<i", b">i")


def not_utf8(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    return content[: len(content) // 2] + b"\xe8\xff\xfe" + content[len(content) // 2 :]


def leave_the_folder(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    """Some word of the text becomes a path that leads out of the folder."""
    words = list(re.finditer(rb"[A-Za-z_]{3,}", content[:65536]))
    if not words:
        return b"../../../etc/passwd"
    chosen = words[int(rng.integers(0, len(words)))]
    return content[: chosen.start()] + b"../../../../etc/passwd" + content[chosen.end() :]


def pickled_code(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    return pickle.dumps({"betas": _Code(marker), "conds": [], "indices": {}})


def pickled_code_in_npy(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    return (
        b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + pickled_code(content, rng, marker)
    )


def noise(content: bytes, rng: np.random.Generator, marker: Path) -> bytes:
    return rng.bytes(min(len(content), 4096))


MUTATIONS: tuple[Mutation, ...] = (
    truncate,
    empty,
    flip_bytes,
    flip_header,
    overwrite_run,
    cut_out,
    claim_more,
    swap_endian,
    not_utf8,
    leave_the_folder,
    pickled_code,
    pickled_code_in_npy,
    noise,
)
