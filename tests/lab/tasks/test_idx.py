import re

import numpy as np
import pytest

from schuss.lab.tasks import load
from schuss.lab.tasks.digits import read_idx

IMAGES = "train-images-idx3-ubyte"


@pytest.mark.parametrize("compress", [False, True])
def test_plain_and_gzipped_files_hold_the_same(mnist_folder, compress):
    task = load("mnist", mnist_folder(compress))
    images, labels = next(iter(task.batches("test")))
    assert images.shape == (40, 1, 28, 28)
    assert 0 <= images.min() < images.max() <= 1
    assert labels.tolist() == [i % 10 for i in range(40)]
    first = np.random.default_rng(0).integers(
        0, 256, (40, 28, 28), dtype=np.uint8
    )  # the file, as it was written
    whole = task.train[0]
    assert np.array_equal((whole[:, 0] * 255).round().numpy().astype(np.uint8), first)


def test_digits_with_data_is_mnist(mnist_folder):
    assert load("digits", mnist_folder()).name == "mnist"


def test_a_file_cut_short_is_named(mnist_folder):
    path = mnist_folder() / IMAGES
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        ValueError,
        match=re.escape(f"{path} is cut short: its header says 31360 bytes of data, it has 31359."),
    ):
        load("mnist", path.parent)


def test_a_file_without_its_header_is_named(mnist_folder):
    path = mnist_folder() / IMAGES
    path.write_bytes(b"\0\0\x08")
    with pytest.raises(ValueError, match=re.escape(f"{path} is cut short: 3 bytes")):
        load("mnist", path.parent)


def test_a_file_that_goes_on_is_named(mnist_folder):
    path = mnist_folder() / IMAGES
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ValueError, match=re.escape(f"{path} is too long")):
        load("mnist", path.parent)


def test_a_gzip_file_cut_short_is_named(mnist_folder):
    path = mnist_folder(compress=True) / f"{IMAGES}.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=re.escape(f"{path} is cut short or not gzip")):
        load("mnist", path.parent)


def test_a_wrong_magic_number_is_named(mnist_folder):
    folder = mnist_folder()
    labels = folder / "train-labels-idx1-ubyte"
    with pytest.raises(
        ValueError, match=re.escape(f"{labels} is not an IDX file") + ".*0x00000801, expected 0x00000803"
    ):
        read_idx(labels, 3)


def test_a_missing_file_is_named(mnist_folder):
    path = mnist_folder() / "t10k-labels-idx1-ubyte"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(f"{path} is missing")):
        load("mnist", path.parent)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(NotADirectoryError, match="nowhere is not a folder"):
        load("mnist", tmp_path / "nowhere")


def test_images_and_labels_that_do_not_fit_are_named(mnist_folder):
    folder = mnist_folder()
    labels = folder / "train-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:4] + (39).to_bytes(4, "big") + labels.read_bytes()[8:-1])
    with pytest.raises(ValueError, match=r"holds 40 images but .* holds 39 labels"):
        load("mnist", folder)
