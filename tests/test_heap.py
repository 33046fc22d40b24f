"""Freed memory stays with the process: no new pages when the same block is asked for again."""

import json
import os
import subprocess
import sys

import pytest

from cadiff.heap import keep_freed_memory

AGAIN = """
import json, resource, sys
from cadiff.heap import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else None
size = 2**27
b"x" * size  # asked for, written, freed
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    b"x" * size
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
b"x" * (16 * size)  # 2 GiB are never kept
pages = int(open("/proc/self/statm").read().split()[1])
print(json.dumps([told, faults, pages * resource.getpagesize()]))
"""

glibc = pytest.mark.skipif(
    "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}), reason="not the GNU C library"
)


def again(how, **environment):
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, how],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@glibc
def test_a_block_that_was_freed_is_used_again_without_new_pages():
    told, faults, _ = again("keep")
    _, without, _ = again("leave")
    assert told
    assert without > 5 * 1000  # pages of at most 64 KiB, five times 128 MiB
    assert faults < without / 100


@glibc
def test_what_is_larger_than_it_keeps_goes_back_to_the_system():
    *_, resident = again("keep")
    assert resident < 2**30


@pytest.mark.parametrize(
    "said", [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}]
)
def test_what_the_environment_says_is_left_alone(monkeypatch, said):
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert not keep_freed_memory()


@pytest.mark.parametrize("names", [{}, {"CS_GNU_LIBC_VERSION": 2}], ids=["macOS", "musl"])
def test_another_c_library_is_left_alone(monkeypatch, names):
    monkeypatch.setattr(os, "confstr_names", names, raising=False)
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())  # no mallopt
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))]:
        monkeypatch.delenv(name)
    assert not keep_freed_memory()
