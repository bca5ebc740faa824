"""Images and their classes: CIFAR's binary files, folders of images, TFDS, a reduced CIFAR-10, digits.

Everything is read as uint8 ``[images, size, size, 3]``; nothing is unpickled, so CIFAR is its binary version.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from experiments.digits import TRAIN, digit_pixels
from experiments.images import ImageFolder
from experiments.npz import load_npz

REDUCED = "amcl/cifar10_16px_small.npz"
"""In the folder of the data: ten classes at 16 pixels, 10,000 and 2,000 images."""
SIDE, CHANNELS = 32, 3
CIFAR_FILES = {
    10: ([f"data_batch_{i}.bin" for i in range(1, 6)], ["test_batch.bin"]),
    100: (["train.bin"], ["test.bin"]),
}
"""Of CIFAR's binary version, by the number of classes."""


class Labelled(NamedTuple):
    """Images and their classes."""

    x: np.ndarray
    """uint8 ``[images, size, size, 3]``."""
    y: np.ndarray
    """int32 ``[images]``."""


class ImageData(NamedTuple):
    """A data set."""

    name: str
    train: Labelled
    test: Labelled
    classes: int


def cifar_binary(root: Path, classes: int = 10) -> ImageData:
    """CIFAR-10 or CIFAR-100 from the binary version of its archive.

    A record is one byte with the class (CIFAR-100: two, of which the second is the fine class), then 3072
    bytes, the red, the green and the blue plane.

    Args:
        root: the unpacked folder, ``cifar-10-batches-bin`` or ``cifar-100-binary``.
        classes: 10 or 100.

    Returns:
        The data set.

    Raises:
        FileNotFoundError: a file is missing. The message names it, and the remedy.
        ValueError: a file of another size, or a class that does not exist. Likewise, with the record.
    """
    if classes not in CIFAR_FILES:
        raise ValueError(f"classes: expected 10 or 100, got {classes}")
    train, test = (_records(root, names, classes) for names in CIFAR_FILES[classes])
    return ImageData(f"CIFAR-{classes}", train, test, classes)


def _records(root: Path, names: Sequence[str], classes: int) -> Labelled:
    head = 1 if classes == 10 else 2
    length, images, labels = head + CHANNELS * SIDE**2, [], []
    for name in names:
        path = root / name
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no {path}: unpack CIFAR-{classes}'s binary version (cifar-{classes}-binary.tar.gz)"
            )
        content = np.fromfile(path, np.uint8)
        if content.size == 0 or content.size % length:
            raise ValueError(
                f"{path}: expected records of {length} bytes, got {content.size} bytes: unpack the binary"
                " version, not the one for Python, again"
            )
        records = content.reshape(-1, length)
        y = records[:, head - 1].astype(np.int32)
        if (wrong := np.flatnonzero(y >= classes)).size:
            raise ValueError(
                f"{path}: record {wrong[0]} has the class {y[wrong[0]]}: expected 0 to {classes - 1}; unpack"
                " the archive again"
            )
        images.append(records[:, head:].reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1))
        labels.append(y)
    return Labelled(np.concatenate(images), np.concatenate(labels))


def image_folder(root: Path, size: int) -> ImageData:
    """Images in folders, ``train/<class>/*`` and ``test/<class>/*`` (or ``val``).

    Args:
        root: the folder.
        size: side of the square that each image is shrunk and cut to.

    Returns:
        The data set, in memory.

    Raises:
        FileNotFoundError: a folder is missing. The message names it, and the remedy.
        ValueError: the two parts have other classes, or a file is no image. Likewise.
    """
    held_out = root / "test" if (root / "test").is_dir() else root / "val"
    train, test = ImageFolder(root / "train", size), ImageFolder(held_out, size)
    if train.classes != test.classes:
        differing = sorted(set(train.classes) ^ set(test.classes))[0]
        raise ValueError(f"{root}: the class {differing!r} is in one of train and {held_out.name} only")

    def read(folder: ImageFolder) -> Labelled:
        examples = [folder[index] for index in range(len(folder))]
        x = np.stack([np.rint((example["x0"] + 1) * 127.5).astype(np.uint8) for example in examples])
        return Labelled(x, np.array([example["cond"] for example in examples], np.int32))

    return ImageData(root.name, read(train), read(test), len(train.classes))


def tfds_images(name: str, size: int) -> ImageData:
    """A data set of TensorFlow Datasets, read through its random-access interface.

    Args:
        name: of a data set with "image" and "label" and splits "train" and "test", as "cifar10".
        size: side of the square that each image is shrunk and cut to.

    Returns:
        The data set, in memory.

    Raises:
        ImportError: tensorflow-datasets is not installed.
    """
    try:
        tfds = importlib.import_module("tensorflow_datasets")
    except ImportError as error:
        raise ImportError(
            f"the data set {name!r} of TFDS needs tensorflow-datasets ({error}): pip install"
            " tensorflow-datasets array_record"
        ) from error
    from experiments.images import centre_square

    builder = tfds.builder(name, file_format="array_record")
    builder.download_and_prepare()

    def read(split: str) -> Labelled:
        source = builder.as_data_source(split=split)
        rows = [source[index] for index in range(len(source))]
        x = [np.asarray(centre_square(Image.fromarray(row["image"]).convert("RGB"), size)) for row in rows]
        return Labelled(np.stack(x), np.array([row["label"] for row in rows], np.int32))

    train, test = read("train"), read("test")
    return ImageData(name, train, test, builder.info.features["label"].num_classes)


def reduced_cifar(path: Path) -> ImageData:
    """The reduced CIFAR-10 of 16 x 16 pixels.

    Args:
        path: of the npz file, with ``train_x``, ``train_y``, ``test_x``, ``test_y`` and ``class_names``.

    Returns:
        The data set.

    Raises:
        ValueError: an array is missing or has another shape. The message names the file and the remedy.
    """
    arrays = load_npz(path)
    for name in ("train_x", "train_y", "test_x", "test_y"):
        if name not in arrays or arrays[name].ndim != (4 if name.endswith("x") else 1):
            raise ValueError(
                f"{path}: expected {name} with images [N, 16, 16, 3] or classes [N]: copy the file again"
            )
    train, test = (
        Labelled(arrays[f"{part}_x"], arrays[f"{part}_y"].astype(np.int32)) for part in ("train", "test")
    )
    return ImageData("CIFAR-10, 16 pixels", train, test, int(train.y.max()) + 1)


def digits() -> ImageData:
    """scikit-learn's digits, enlarged to 16 x 16 pixels and grey: what there is on a fresh machine.

    Example:
        >>> digits().train.x.shape
        (1437, 16, 16, 3)
    """
    pixels = digit_pixels()
    grey = np.rint((pixels.x + 1) * 127.5).astype(np.uint8).reshape(-1, 8, 8)
    x = np.repeat(grey.repeat(2, 1).repeat(2, 2)[..., None], CHANNELS, -1)
    train, test = Labelled(x[:TRAIN], pixels.y[:TRAIN]), Labelled(x[TRAIN:], pixels.y[TRAIN:])
    return ImageData("digits, 16 pixels", train, test, 10)


def load_images(source: str, size: int, folder: Path) -> ImageData:
    """The data set that a config names.

    Args:
        source: "auto" (the reduced CIFAR-10 if it is there, else digits), "digits", "cifar10:PATH",
            "cifar100:PATH", "folder:PATH", or "tfds:NAME".
        size: side of the images of folders and TFDS.
        folder: where the reduced CIFAR-10 is looked for.

    Returns:
        The data set.

    Raises:
        ValueError: a source that does not exist, or files that are not what they should be.
        FileNotFoundError: files that are missing.
    """
    kind, _, where = source.partition(":")
    if kind == "auto":
        path = folder / REDUCED
        return reduced_cifar(path) if path.is_file() else digits()
    if kind == "digits":
        return digits()
    if kind in ("cifar10", "cifar100") and where:
        return cifar_binary(Path(where), int(kind.removeprefix("cifar")))
    if kind == "folder" and where:
        return image_folder(Path(where), size)
    if kind == "tfds" and where:
        return tfds_images(where, size)
    raise ValueError(
        "source: expected auto, digits, cifar10:PATH, cifar100:PATH, folder:PATH or tfds:NAME, got"
        f" {source!r}"
    )


def subset(data: ImageData, images: int, seed: int) -> ImageData:
    """As many training images of each class, drawn at random, in random order.

    Args:
        data: the data set.
        images: how many in all; at most what there is.
        seed: of the draw.

    Returns:
        The data set with fewer training images.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(data.train.y))
    each = -(-images // data.classes)
    rank = np.zeros(len(order), int)
    for label in range(data.classes):
        rank[order[data.train.y[order] == label]] = np.arange(np.sum(data.train.y == label))
    chosen = order[rank[order] < each][:images]
    return data._replace(train=Labelled(data.train.x[chosen], data.train.y[chosen]))
