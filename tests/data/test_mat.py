"""MATLAB files: the same arrays as scipy and h5py give, and no claim of a hostile file is believed."""

from __future__ import annotations

import resource
import struct
import zlib

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat

from cadiff.data import mat
from cadiff.data.mat import MatFile, load_mat
from cadiff.errors import DataError
from layouts.arrays import write_mat73

HEADER = b"MATLAB 5.0 MAT-file, made by a test".ljust(124)


def element(kind: int, content: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def variable(
    name: str, shape: tuple[int, ...], values: bytes, *, kind: int = 9, mx_class: int = 6, order: str = "<"
) -> bytes:
    """An uncompressed variable; by default of class double, stored as double (type 9)."""
    parts = element(6, struct.pack(order + "II", mx_class, 0), order)
    parts += element(5, struct.pack(f"{order}{len(shape)}i", *shape), order)
    parts += element(1, name.encode(), order) + element(kind, values, order)
    return element(14, parts, order)


def write(path, *elements: bytes, order: str = "<"):
    marks = struct.pack(order + "H", 0x0100) + (b"IM" if order == "<" else b"MI")
    path.write_bytes(HEADER + marks + b"".join(elements))
    return path


def contents(rng):
    return {
        "double": rng.normal(size=(5, 3)),
        "single": rng.normal(size=(2, 2, 4)).astype(np.float32),
        "bytes": rng.integers(0, 256, (7, 9)).astype(np.uint8),
        "signed": rng.integers(-1000, 1000, (3, 8)).astype(np.int16),
        "long": rng.integers(-(2**60), 2**60, (2, 2)),
        "scalar": np.array([[3.0]]),
        "flag": np.array([[1]], dtype=np.uint8),
        "empty": np.zeros((0, 4)),
        "a_name_that_is_much_longer_than_eight": rng.normal(size=(1, 6)),
    }


@pytest.mark.parametrize("compressed", [True, False])
def test_arrays_come_out_as_scipy_reads_them(tmp_path, rng, compressed):
    path = tmp_path / "x.mat"
    savemat(
        path,
        {**contents(rng), "text": "hello", "cell": np.array(["a", 1], dtype=object)},
        do_compression=compressed,
    )
    found, truth = load_mat(path), loadmat(path)
    assert set(found) == set(contents(rng))
    for name, array in found.items():
        np.testing.assert_array_equal(array, truth[name])
        assert array.dtype == truth[name].dtype
        assert not array.flags.writeable or not array.size


def test_values_that_lie_plain_in_the_file_are_memory_mapped(tmp_path, rng):
    savemat(tmp_path / "x.mat", {"a": rng.normal(size=(40, 30))})
    assert isinstance(load_mat(tmp_path / "x.mat")["a"], np.memmap)


def test_a_big_endian_file_is_read(tmp_path):
    values = np.arange(6, dtype=">f8").reshape(2, 3)
    path = write(tmp_path / "x.mat", variable("a", (2, 3), values.tobytes(order="F"), order=">"), order=">")
    np.testing.assert_array_equal(load_mat(path)["a"], values)


def test_matlab_stores_whole_doubles_in_fewer_bytes(tmp_path):
    path = write(tmp_path / "x.mat", variable("a", (2, 2), bytes([1, 2, 3, 4]), kind=2))
    np.testing.assert_array_equal(load_mat(path)["a"], [[1, 3], [2, 4]])


@pytest.mark.parametrize("storage", [{}, {"compression": None}, {"compression": None, "chunks": (2, 3)}])
def test_axes_of_version_73_are_turned_to_what_matlab_shows(tmp_path, rng, storage):
    array = rng.normal(size=(5, 4))
    write_mat73(tmp_path / "x.mat", {"a": array, "b": array.astype(">f4")}, **storage)
    found = load_mat(tmp_path / "x.mat", ["a", "b"])
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"], array.astype(np.float32))


def test_a_large_compressed_array_of_version_73_is_unpacked_to_disk(tmp_path, rng, monkeypatch):
    array = rng.normal(size=(50, 40))
    write_mat73(tmp_path / "x.mat", {"a": array}, chunks=(7, 50))
    monkeypatch.setattr(mat, "IN_MEMORY", 1000)
    found = load_mat(tmp_path / "x.mat")["a"]
    np.testing.assert_array_equal(found, array)
    assert isinstance(found, np.memmap)


def test_links_and_data_elsewhere_are_passed_over(tmp_path):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(4.0)
    (tmp_path / "raw").write_bytes(bytes(32))
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file["own"] = np.arange(3.0)
        file["link"] = h5py.ExternalLink(str(secret), "/x")
        file["soft"] = h5py.SoftLink("/own")
        file.create_dataset("raw", (4,), "f8", external=[(str(tmp_path / "raw"), 0, 32)])
        layout = h5py.VirtualLayout((4,), "f8")
        layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
        file.create_virtual_dataset("virtual", layout)
        file["text"] = np.array([104, 105], dtype=np.uint16)
        file["text"].attrs["MATLAB_class"] = np.bytes_("char")
    assert list(MatFile(tmp_path / "x.mat")) == ["own"]


def test_what_is_missing_and_what_is_there_is_named(tmp_path):
    savemat(tmp_path / "x.mat", {"a": np.ones((2, 2)), "words": "text"})
    with pytest.raises(DataError, match=r"x\.mat lacks b, words \(numeric arrays found: a\)"):
        load_mat(tmp_path / "x.mat", ["a", "b", "words"])
    with pytest.raises(DataError, match="There is no file"):
        load_mat(tmp_path / "y.mat")


def claims_of_ten_gigabytes() -> dict[str, bytes]:
    huge = (100_000, 12_500)
    inner = variable("a", huge, b"\0" * 16)
    bomb = zlib.compress(struct.pack("<II", 14, 2**32 - 1) + inner[8:])
    flags, name = element(6, struct.pack("<II", 6, 0)), element(1, b"a")
    lengths = element(5, struct.pack("<2i", *huge))
    long_tag = flags + lengths + name + struct.pack("<II", 9, 2**32 - 1)
    cell = element(6, struct.pack("<II", 1, 0)) + element(5, struct.pack("<2i", 1, 2**31 - 1)) + name
    return {
        "shape": inner,
        "values": element(14, long_tag),
        "element": struct.pack("<II", 14, 2**32 - 1) + inner[8:],
        "compressed": struct.pack("<II", 15, len(bomb)) + bomb,
        "cells": element(14, cell),
        "negative": variable("a", (-1, -2), b"\0" * 16),
        "name": element(14, flags + lengths + struct.pack("<II", 1, 2**32 - 1)),
    }


@pytest.mark.parametrize("claim", claims_of_ten_gigabytes())
def test_a_claim_of_ten_gigabytes_is_refused_without_allocating(tmp_path, claim):
    path = write(tmp_path / "x.mat", claims_of_ten_gigabytes()[claim])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=r"x\.mat"):
        load_mat(path, ["a"])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


def test_a_claim_of_ten_gigabytes_in_version_73_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file.create_dataset("chunks", (100_000, 12_500), "f8", chunks=(100, 100))
        file.create_dataset("plain", (100_000, 12_500), "f8")
    for name in ("chunks", "plain"):
        with pytest.raises(DataError, match="claims 10000000000 bytes, 0 are stored"):
            load_mat(tmp_path / "x.mat", [name])


def test_a_changed_byte_of_compressed_values_is_noticed(tmp_path, rng):
    path = tmp_path / "x.mat"
    savemat(path, {"a": rng.normal(size=(30, 30))}, do_compression=True)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1  # the checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        load_mat(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no MATLAB",
        b"\0" * 128,
        HEADER + b"\0\1IM" + b"\0" * 8,
        HEADER + b"\0\2IM",
        b"\x89HDF\r\n\x1a\n" + b"\0" * 99,
    ],
    ids=["empty", "text", "zeros", "no variable", "version 7.3 without HDF5", "HDF5 without content"],
)
def test_what_is_no_mat_file_is_refused(tmp_path, content):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.mat is not a \.mat file that can be read"):
        load_mat(tmp_path / "x.mat")
