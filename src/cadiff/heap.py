"""Memory that was freed is kept for the next step, where the C library would hand it back to the system.

glibc gives blocks of more than 32 MiB back as soon as they are freed, and the end of its heap likewise. Networks free and ask for
the same blocks again and again, and each time the system has to find, clear and map their pages: on a virtual machine that took
half of the time of a classifier (docs/benchmarks.md). The numbers computed do not change.
"""

from __future__ import annotations

import ctypes
import os

KEPT = 2**30
"""Bytes: blocks up to this size come from the heap, and so much that is free at its end stays with the process."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt, as in glibc's malloc.h."""


def keep_freed_memory() -> bool:
    """Keeps up to `KEPT` bytes of freed memory in this process and its forks from now on; whether the C library could be told.

    False, and nothing is done, without glibc, or where the environment already says what malloc shall do (MALLOC_...,
    GLIBC_TUNABLES). It is for whole programs, whose memory is theirs to keep: `cadiff` calls it, importing cadiff does not.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    if not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl knows that name too, and has no mallopt
    return mallopt is not None and all([mallopt(MMAP_THRESHOLD, KEPT), mallopt(TRIM_THRESHOLD, KEPT)])
