"""Files of weights: what torch and safetensors read is read the same, without a copy; what claims too much is refused first."""

import io
import json
import pickle
import struct
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from cadiff.convert.recognise import recognise
from cadiff.convert.tensor_refs import StorageRef, TensorRef
from cadiff.convert.weight_file import WeightFile
from cadiff.errors import ArtifactError
from layouts import weights


def tensors(path):
    file = WeightFile.open(path)
    return file.tensors(
        {name: ref for name, ref in file.contents.value.items() if isinstance(ref, TensorRef)}
    )


def variety():
    base = torch.arange(24.0)
    generator = torch.Generator().manual_seed(0)
    return {
        "float": torch.randn(3, 5, generator=generator),
        "half": torch.randn(7, generator=generator).half(),
        "bfloat": torch.randn(7, generator=generator).bfloat16(),
        "double": torch.randn(2, 2, generator=generator).double(),
        "long": torch.arange(5),
        "int": torch.arange(3, dtype=torch.int32),
        "bool": torch.tensor([True, False]),
        "byte": torch.arange(9, dtype=torch.uint8),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(2, 3)),
        "transposed": base.view(4, 6).t(),
        "slice": base[5:11],
        "strided": base[::3],
        "channels": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("older", [False, True])
def test_torch_files_are_read_as_torch_reads_them(tmp_path, older):
    torch.save(variety(), tmp_path / "a.pth", _use_new_zipfile_serialization=not older)
    theirs, ours = torch.load(tmp_path / "a.pth", weights_only=True), tensors(tmp_path / "a.pth")
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name].detach()), name
        assert value.stride() == theirs[name].stride(), name
        assert value.data_ptr() % value.element_size() == 0, name


def test_safetensors_files_are_read_as_safetensors_reads_them(tmp_path):
    plain = {name: value.detach().contiguous().clone() for name, value in variety().items()}
    save_file(plain, tmp_path / "a.safetensors", metadata={"format": "pt"})
    ours = tensors(tmp_path / "a.safetensors")
    assert ours.keys() == plain.keys()
    assert all(
        value.dtype == plain[name].dtype and torch.equal(value, plain[name]) for name, value in ours.items()
    )


def test_safetensors_are_known_by_their_content(tmp_path):
    save_file({"a": torch.ones(3)}, tmp_path / "model.ckpt")
    assert tensors(tmp_path / "model.ckpt")["a"].tolist() == [1, 1, 1]


def test_tensors_are_views_of_the_file_and_writing_to_them_leaves_it_alone(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pth")
    before = (tmp_path / "a.pth").read_bytes()
    file = WeightFile.open(tmp_path / "a.pth")
    ref = file.contents.value["a"]
    first, second = file.tensors({"a": ref})["a"], file.tensors({"a": ref})["a"]
    assert first.data_ptr() == second.data_ptr()  # nothing was copied
    first += 1
    assert (tmp_path / "a.pth").read_bytes() == before


def test_shared_storages_stay_shared(tmp_path):
    base = torch.arange(10.0)
    torch.save({"a": base[:5], "b": base[5:], "c": base}, tmp_path / "a.pth")
    found = tensors(tmp_path / "a.pth")
    assert torch.equal(torch.cat([found["a"], found["b"]]), found["c"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95, 0.999])
def test_a_zip_that_was_cut_off_says_its_size_and_what_its_tensors_take(tmp_path, share):
    content = {"model": {f"w{i}": torch.randn(50, 50) for i in range(40)}}
    whole = weights.save(tmp_path / "a.pth", content, num_heads=3).read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ArtifactError) as error:
        WeightFile.open(tmp_path / "a.pth")
    said = str(error.value)
    assert "cut off" in said and f"it has {int(share * len(whole)):,} bytes" in said
    assert f"the tensors it lists take {40 * 50 * 50 * 4:,} alone" in said


def test_an_older_file_that_was_cut_off_says_both_sizes(tmp_path):
    torch.save(
        {"a": torch.zeros(1000), "b": torch.zeros(500)},
        tmp_path / "a.pth",
        _use_new_zipfile_serialization=False,
    )
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[:-100])
    with pytest.raises(
        ArtifactError,
        match=f"it has {len(whole) - 100:,} bytes, and the tensors it lists need {len(whole):,}",
    ):
        WeightFile.open(tmp_path / "a.pth")


def test_safetensors_that_were_cut_off_say_both_sizes(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(
        ArtifactError, match=f"it has {len(whole) - 100:,} bytes, and its header lists {len(whole):,}"
    ):
        WeightFile.open(path)
    path.write_bytes(whole[:30])
    with pytest.raises(ArtifactError, match="of which its header claims"):
        WeightFile.open(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}},
            "is cut off: it has .* lists 4,000,000,000,",
        ),
        (
            {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4]}},
            "takes 4,000,000,000,000 bytes and is given 4",
        ),
        ({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, "has a size that cannot be"),
        ({"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}, "is of type Q9"),
        ({"a": {"dtype": "F32", "shape": [1]}}, "header that cannot be read"),
        (["a"], "header that cannot be read"),
    ],
)
def test_safetensors_headers_that_claim_what_is_not_there(tmp_path, header, message):
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(4))
    with pytest.raises(ArtifactError, match=message):
        WeightFile.open(tmp_path / "a.safetensors")


def test_a_header_length_of_terabytes_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(ArtifactError, match="its header claims 1,152,921,504,606,846,976"):
        WeightFile.open(tmp_path / "a.safetensors")


def rewrite(path, change, compression=zipfile.ZIP_STORED):
    """The same archive with changed entries: name -> bytes, None to leave one out."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            if (new := change(name, data)) is not None:
                archive.writestr(name, new)
    return path


@pytest.fixture
def plain(tmp_path):
    return weights.save(tmp_path / "a.pth", {"model": {"w": torch.ones(100), "v": torch.zeros(3)}})


def test_compressed_records_are_refused(plain):
    rewrite(plain, lambda name, data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match=r"is compressed or encrypted, which torch\.save never does"):
        WeightFile.open(plain)


def test_records_that_do_not_fit_their_tensors_are_refused(plain):
    rewrite(plain, lambda name, data: data[:-4] if name.endswith("data/0") else data)
    with pytest.raises(ArtifactError, match="storage 0 has 396 bytes, expected 400"):
        WeightFile.open(plain)
    rewrite(plain, lambda name, data: None if name.endswith("data/0") else data)
    with pytest.raises(ArtifactError, match="storage 0 is absent"):
        WeightFile.open(plain)


def test_records_outside_the_file_or_on_top_of_each_other_are_refused(plain):
    whole = plain.read_bytes()
    directory = whole.index(b"PK\x01\x02")
    entry = whole.index(b"a/data/0", directory) - 46
    far = bytearray(whole)
    far[entry + 42 : entry + 46] = struct.pack("<I", len(whole) - 40)
    plain.write_bytes(bytes(far))
    with pytest.raises(ArtifactError, match="which do not lie in its"):
        WeightFile.open(plain)
    large = bytearray(whole)
    large[entry + 20 : entry + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    plain.write_bytes(bytes(large))
    with pytest.raises(ArtifactError, match="which do not lie in its"):
        WeightFile.open(plain)


def test_flipped_bits_are_found_by_the_checksum(plain):
    whole = bytearray(plain.read_bytes())
    start = whole.index(struct.pack("<f", 1.0) * 100)
    whole[start + 8] ^= 1
    plain.write_bytes(bytes(whole))
    file = WeightFile.open(plain)
    with pytest.raises(ArtifactError, match="storage 0 differs from its checksum"):
        file.tensors(file.contents.value["model"])


def test_values_that_are_not_finite_are_refused(tmp_path):
    torch.save({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match="the weight w is not finite"):
        tensors(tmp_path / "a.pth")


def tensor_pickle(shape, stride, offset=0, numel=4, key="0", kind="FloatStorage", copies=1):
    """The pickle of {"w0": tensor, ...} with these numbers in it."""

    class Rebuild:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, {})

    class Storage:
        pass

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        def persistent_id(self, value):
            return (
                ("storage", getattr(torch, kind), key, "cpu", numel) if isinstance(value, Storage) else None
            )

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({f"w{i}": Rebuild() for i in range(copies)})
    return buffer.getvalue()


def archive_of(path, pickled, data=bytes(16)):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/data/0", data)
    return path


def test_the_tensors_made_by_hand_are_read(tmp_path):
    found = tensors(
        archive_of(tmp_path / "a.pth", tensor_pickle((2, 2), (2, 1)), struct.pack("<4f", 1, 2, 3, 4))
    )
    assert found["w0"].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (
            {"shape": (10**6, 10**6), "stride": (0, 0)},
            "a tensor of 1,000,000,000,000 numbers in a storage of 4",
        ),
        ({"shape": (4,), "stride": (2,)}, "a tensor of 4 numbers in a storage of 4"),
        ({"shape": (2,), "stride": (1,), "offset": 3}, "a tensor of 2 numbers in a storage of 4"),
        ({"shape": (-2,), "stride": (1,)}, "a tensor that cannot be"),
        ({"shape": (2,), "stride": (-1,), "offset": 3}, "a tensor that cannot be"),
        ({"shape": (2,), "stride": (1, 1)}, "argument"),
        (
            {"shape": (2,), "stride": (1,), "numel": 10**15},
            "storage 0 has 16 bytes, expected 4,000,000,000,000,000",
        ),
        ({"shape": (2,), "stride": (1,), "key": "../../etc/passwd"}, "is absent"),
        ({"shape": (2,), "stride": (1,), "kind": "QInt8Storage"}, "a storage of kind QInt8Storage"),
    ],
)
def test_tensors_that_claim_more_than_their_storage_are_refused_before_allocation(tmp_path, numbers, message):
    path = archive_of(tmp_path / "a.pth", tensor_pickle(**numbers))
    with pytest.raises(ArtifactError, match=message):
        WeightFile.open(path)


def test_many_tensors_over_one_storage_are_refused(tmp_path):
    path = archive_of(
        tmp_path / "a.pth", tensor_pickle((25000,), (1,), numel=25000, copies=50), bytes(100_000)
    )
    with pytest.raises(ArtifactError, match="its tensors claim 5,000,000 bytes, the file has"):
        tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><title>Google Drive - Virus scan warning</title>", "is a web page"),
        (b"\n  <html lang='en'>", "is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 1828452136\n",
            r"Git LFS pointer; the weights \(1828452136 bytes\)",
        ),
        (b"hello, these are no weights", "is no file of weights that this reads"),
        (pickle.dumps([1, 2]), "is no file of weights that this reads"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "is no file of weights that this reads"),
    ],
)
def test_what_is_not_weights_is_named(tmp_path, content, message):
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        WeightFile.open(tmp_path / "model.ckpt")
    if "reads" not in message:  # downloads go wrong for every format
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ArtifactError, match=message):
            WeightFile.open(tmp_path / "model.safetensors")


def test_other_archives_are_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"x")
    with pytest.raises(ArtifactError, match=r"none of torch\.save \(it holds arr_0\.npy\)"):
        WeightFile.open(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for name in ("b/data.pkl", "b/constants.pkl", "b/code/x.py"):
            archive.writestr(name, b"N.")
    with pytest.raises(ArtifactError, match="a TorchScript program, which is code"):
        WeightFile.open(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("c/data.pkl", b"\x80\x02}.")
        archive.writestr("c/byteorder", b"big")
    with pytest.raises(ArtifactError, match="big-endian"):
        WeightFile.open(tmp_path / "c.pt")
    with pytest.raises(ArtifactError, match="There is no file of weights"):
        WeightFile.open(tmp_path / "nowhere.pth")


def test_objects_and_unknown_layouts_are_named(tmp_path):
    with weights.foreign_class("models.vit", "ViT") as kind:
        torch.save(kind(), tmp_path / "whole.pth")
    with pytest.raises(
        ArtifactError, match=r"a pickled object of class models\.vit\.ViT, whose code this never runs"
    ):
        recognise(tmp_path / "whole.pth")
    torch.save({"state_dict": {"conv1.weight": torch.ones(2)}}, tmp_path / "other.pth")
    with pytest.raises(
        ArtifactError,
        match=r"no checkpoint that this knows: it holds 1 weights by name \(first: conv1\.weight\)",
    ):
        recognise(tmp_path / "other.pth")
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(ArtifactError, match="holds a list, expected weights by name"):
        recognise(tmp_path / "list.pth")


def test_sizes_of_references():
    ref = TensorRef(StorageRef("0", "bfloat16", 100), 0, (3, 4), (4, 1))
    assert (ref.numel, ref.size, ref.storage.size, ref.dtype) == (12, 24, 200, "bfloat16")
