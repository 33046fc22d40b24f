import gzip
import struct

import numpy as np
import pytest
from PIL import Image

from cadiff.errors import DataError
from cadiff.priors.images import load_images, read_idx, to_square, write_mnist


def write_folder(root, images, labels, suffix=".png"):
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / f"class{label}" / "images" / f"{row:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return root


def idx_bytes(array):
    codes = {"uint8": 8, "int32": 12}
    big = array.astype(array.dtype.newbyteorder(">"))
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, codes[array.dtype.name], array.ndim, *array.shape)
        + big.tobytes()
    )


def write_idx(path, array):
    path.write_bytes(gzip.compress(idx_bytes(array)))
    return path


@pytest.fixture
def mnist(tmp_path):
    rng = np.random.default_rng(0)
    digits = np.arange(40, dtype=np.uint8) % 10
    pictures = rng.integers(0, 256, (40, 28, 28), dtype=np.uint8)
    return (
        write_idx(tmp_path / "images.gz", pictures),
        write_idx(tmp_path / "labels.gz", digits),
        pictures,
        digits,
    )


def test_folder_and_npz_give_the_same_pictures(tmp_path, shapes, shapes_npz):
    images, labels = shapes
    folder = load_images(write_folder(tmp_path / "photos", images, labels), 16)
    archive = load_images(shapes_npz, 16)
    order = np.lexsort((np.arange(len(labels)), labels))  # a folder is read class by class
    np.testing.assert_array_equal(folder.images, images[order])
    np.testing.assert_array_equal(folder.labels, labels[order])
    np.testing.assert_array_equal(archive.images, images)
    assert folder.classes == ["class0", "class1"] and archive.classes == ["0", "1"]
    assert folder.imagenet_index is None


def test_class_table_names_the_classes(tmp_path, shapes):
    root = write_folder(tmp_path / "photos", *shapes)
    (root / "classes.tsv").write_text("class\tname\timagenet_index\nclass1\tdisc\t\nclass0\tsquare\t7\n")
    pictures = load_images(root, 16)
    assert pictures.names == ["square", "disc"] and pictures.imagenet_index == [7, -1]


def test_npz_labels_become_rows_whatever_their_numbers(tmp_path, shapes):
    np.savez(
        tmp_path / "a.npz",
        images=shapes[0][..., 0],
        labels=np.where(shapes[1] == 0, 6, 9),
        names=["six", "nine"],
    )
    pictures = load_images(tmp_path / "a.npz", 16)
    assert pictures.classes == ["6", "9"] and pictures.names == ["six", "nine"]
    np.testing.assert_array_equal(pictures.labels, shapes[1])
    np.testing.assert_array_equal(pictures.images[..., 0], pictures.images[..., 2])


def test_padding_keeps_every_pixel_in_the_middle():
    picture = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    square = to_square(picture, 32, "pad")
    np.testing.assert_array_equal(square[2:30, 2:30, 1], picture)
    assert square.sum() == 3 * int(picture.astype(int).sum())


def test_resizing_takes_the_centre_square_and_keeps_flat_colours():
    picture = np.zeros((10, 30, 3), np.uint8)
    picture[:, 10:20] = (10, 100, 200)
    assert (to_square(picture, 16, "resize") == (10, 100, 200)).all()


def test_split_is_a_partition_that_depends_on_the_seed_only(shapes_npz):
    pictures = load_images(shapes_npz, 16)
    train, heldout = pictures.split(10, seed=3)
    assert len(heldout) == 10 and sorted([*train, *heldout]) == list(range(48))
    np.testing.assert_array_equal(heldout, load_images(shapes_npz, 16).split(10, seed=3)[1])
    assert set(heldout) != set(pictures.split(10, seed=4)[1])


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
@pytest.mark.parametrize("shape", [(5,), (3, 4, 2)])
def test_idx_round_trip(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    (tmp_path / "plain").write_bytes(idx_bytes(array))
    for path in (write_idx(tmp_path / "packed.gz", array), tmp_path / "plain"):
        np.testing.assert_array_equal(read_idx(path), array)


def test_mnist_leaves_out_what_it_is_told_to(tmp_path, mnist):
    images, labels, pictures, digits = mnist
    np.savez(tmp_path / "exclude.npz", exclude=np.array([6, 19, 39]))
    out = write_mnist(images, labels, tmp_path / "69.npz", exclude=tmp_path / "exclude.npz", classes=[6, 9])
    rows = [row for row in range(40) if digits[row] in (6, 9) and row not in (6, 19, 39)]
    with np.load(out) as archive:
        np.testing.assert_array_equal(archive["source_row"], rows)
        np.testing.assert_array_equal(archive["images"], pictures[rows])
    assert load_images(out, 32, fit="pad").classes == ["6", "9"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK12", "not an IDX file"),
        (b"", "not an IDX file"),
        (idx_bytes(np.zeros(9, np.uint8))[:-2], "cut short"),
        (b"\x1f\x8b\x08\x00broken", "damaged gzip"),
    ],
)
def test_bad_idx_files_are_refused(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_idx(tmp_path / "file")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 8, 8), np.uint8)}, "no array 'labels'"),
        ({"images": np.zeros((2, 8, 8)), "labels": [0, 1]}, "expected uint8"),
        ({"images": np.zeros((2, 8, 8), np.uint8), "labels": [0, 1, 1]}, "one whole number for each of 2"),
        (
            {"images": np.zeros((2, 8, 8), np.uint8), "labels": [0, 1], "names": ["a"]},
            "1 names for 2 classes",
        ),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "holds no picture"),
    ],
)
def test_bad_archives_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=message):
        load_images(tmp_path / "bad.npz", 8)


def test_bad_folders_are_refused(tmp_path, shapes):
    with pytest.raises(DataError, match="neither a folder"):
        load_images(tmp_path / "nowhere", 16)
    root = write_folder(tmp_path / "photos", *shapes)
    (root / "class0" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        load_images(root, 16)
    (root / "class0" / "broken.png").unlink()
    (root / "class2").mkdir()
    with pytest.raises(DataError, match=r"'class2' of .* holds no picture"):
        load_images(root, 16)
    (root / "class2").rmdir()
    (root / "classes.tsv").write_text("class\tname\nclass0\tsquare\n")
    with pytest.raises(DataError, match="no row for class 'class1'"):
        load_images(root, 16)


def test_padding_refuses_pictures_that_are_too_large(shapes_npz):
    with pytest.raises(DataError, match="16x16 pixels and cannot be padded to 8"):
        load_images(shapes_npz, 8, fit="pad")


def test_mnist_refuses_wrong_pairs_and_exclusions(tmp_path, mnist):
    images, labels, _, digits = mnist
    short = write_idx(tmp_path / "short.gz", digits[:5])
    with pytest.raises(DataError, match="not a pair"):
        write_mnist(images, short, tmp_path / "out.npz")
    np.savez(tmp_path / "exclude.npz", exclude=np.array([40]))
    with pytest.raises(DataError, match="between 0 and 39"):
        write_mnist(images, labels, tmp_path / "out.npz", exclude=tmp_path / "exclude.npz")
    with pytest.raises(DataError, match="picture of class 11"):
        write_mnist(images, labels, tmp_path / "out.npz", classes=[6, 11])
    assert not (tmp_path / "out.npz").exists()
