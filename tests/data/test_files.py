"""Opening other people's files: what numpy wrote is read without a copy, and what lies about itself is refused."""

from __future__ import annotations

import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from cadiff.data.files import Archive, inside, load_picture, need_numbers, open_npy, read_text
from cadiff.errors import DataError
from cadiff.safe_pickle import load_plain_pickle


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "u1", "<U5", "?"])
def test_archives_hold_what_numpy_saved(tmp_path, rng, save, order, dtype):
    values = np.asarray(rng.integers(0, 2, (6, 4)).astype(dtype), order=order)
    save(tmp_path / "a.npz", values, second=values[:0])
    archive = Archive(tmp_path / "a.npz")
    np.testing.assert_array_equal(archive["arr_0"], values)
    assert archive["second"].shape == (0, 4) and set(archive) == {"arr_0", "second"}
    if save is np.savez:
        assert isinstance(archive["arr_0"], np.memmap)


def npy_claiming(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(64)


@pytest.mark.parametrize("shape", ["(10000000000, 100)", "(-1, 8)", "(9,)", "(2, (", "1 +"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path, shape, compression):
    (tmp_path / "a.npy").write_bytes(npy_claiming(shape))
    with pytest.raises(DataError, match=r"a\.npy cannot be read"):
        open_npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w", compression) as archive:
        archive.writestr("x.npy", npy_claiming(shape))
    with pytest.raises(DataError, match="'x' cannot be read"):
        Archive(tmp_path / "a.npz")["x"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_file_that_is_cut_off_is_said_to_be(tmp_path, rng, save, share):
    values = rng.normal(size=(40, 50))
    np.save(tmp_path / "a.npy", values)
    save(tmp_path / "a.npz", values)
    for file, opened in (("a.npy", open_npy), ("a.npz", Archive)):
        whole = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DataError, match=r"cut off or damaged.*copy it again"):
            opened(tmp_path / file)


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code of the file ran')",))


def test_code_in_a_pickle_is_not_run(tmp_path):
    with pytest.raises(DataError, match="exec, which is not plain data"):
        load_plain_pickle(pickle.dumps({"a": Evil()}))
    np.save(tmp_path / "a.npy", np.array({"a": Evil()}), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        open_npy(tmp_path / "a.npy")
    np.savez(tmp_path / "a.npz", x=np.array({"a": Evil()}))
    with pytest.raises(DataError, match="Python objects"):
        Archive(tmp_path / "a.npz")["x"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_pickles_are_read(protocol):
    content = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": [1, "x", (2.5, None)],
        3: np.float32(1.5),
        "c": np.array(["u"]),
    }
    found = load_plain_pickle(pickle.dumps(content, protocol))
    assert found["b"] == content["b"] and found[3] == 1.5
    np.testing.assert_array_equal(found["a"], content["a"])
    np.testing.assert_array_equal(found["c"], content["c"])


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", "", "a\0b"])
def test_names_stay_inside(tmp_path, name):
    with pytest.raises(DataError, match="must not leave the folder"):
        inside(tmp_path, name)


def test_sixteen_bit_and_alpha_pictures_are_converted(tmp_path):
    deep = np.array([[0, 256], [32768, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(load_picture(tmp_path / "deep.png")[..., 1], deep >> 8)
    Image.fromarray(np.full((3, 4, 4), 9, np.uint8)).save(tmp_path / "alpha.png")
    assert load_picture(tmp_path / "alpha.png").shape == (3, 4, 3)


def test_messages_name_the_file(tmp_path):
    (tmp_path / "latin.txt").write_bytes("è".encode("latin1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8"):
        read_text(tmp_path / "latin.txt")
    with pytest.raises(DataError, match=r"no file .*absent\.npy"):
        open_npy(tmp_path / "absent.npy")
    with pytest.raises(DataError, match=r"betas of LH is float64 \(2, 3\), expected numbers \(n, 4\)"):
        need_numbers(np.zeros((2, 3)), (None, 4), "betas of LH")
