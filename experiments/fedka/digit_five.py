"""Digit-Five as its users have it: five MATLAB files of images of digits, each with keys of its own.

MNIST, MNIST-M, USPS, SVHN and synthetic digits, as X. Peng et al., arXiv:1812.01754, gathered them and
FedKA's published code reads them. Everything becomes bytes ``[n, 28, 28, 3]``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.fedka.sources import Domain, Domains, checked_labels

SIZE, CLASSES = 28, 10
FILES = {
    "mt": "mnist_data.mat",
    "mm": "mnistm_with_label.mat",
    "up": "usps_28x28.mat",
    "sv": "svhn_train_32x32.mat",
    "sy": "syn_number.mat",
}


def load_digit_five(folder: Path) -> Domains:
    """The training images of all five domains.

    The published code takes SVHN's labels less one; in SVHN's own file the digit 0 has the label 10, so that
    this would call every digit by the one below it, unlike the other four domains. Here it is the label
    modulo 10.

    Args:
        folder: with the five files.

    Returns:
        The domains mt, mm, up, sv and sy.

    Raises:
        FileNotFoundError: a file is not there. The message names all that are needed.
        ValueError: a file is not as it should be. The message names it, the array or the record, and the
            remedy.
    """
    read = {"mt": _mnist, "mm": _mnist_m, "up": _usps, "sv": _svhn, "sy": _synthetic}
    parts = [Domain(name, *_domain(folder / FILES[name], read[name])) for name in FILES]
    return Domains("Digit-Five", tuple(parts), CLASSES)


def _domain(path: Path, read: Callable[["_File"], tuple[Any, Any]]) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: Digit-Five's folder holds {', '.join(FILES.values())}"
        )
    images, y = read(_File(path))
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not len(images):
        raise ValueError(f"{path}: expected images of one or three colours, got {images.shape}: get it again")
    if images.dtype.kind == "f":
        where = f"{path}: images"
        if not np.isfinite(images).all() or images.min() < 0 or images.max() > 255:
            raise ValueError(f"{where} hold numbers that are not from 0 to 255: get the file again")
        images = np.round(images * (255 if images.max() <= 1 else 1))
    images = images.astype(np.uint8)
    if images.shape[1:3] != (SIZE, SIZE):
        images = np.stack([_resized(image) for image in images])
    images = np.broadcast_to(images, (*images.shape[:3], 3))
    return np.ascontiguousarray(images), checked_labels(f"{path}: labels", y, len(images), CLASSES)


def _resized(image: np.ndarray) -> np.ndarray:
    """Bilinear interpolation."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    resized = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(SIZE, SIZE, -1)


class _File:
    """The arrays of a MATLAB file."""

    def __init__(self, path: Path) -> None:
        from scipy.io import loadmat

        self.path = path
        try:
            self.arrays = {name: x for name, x in loadmat(path).items() if not name.startswith("__")}
        except Exception as error:  # scipy's own, or whatever its parser meets in a damaged header
            raise ValueError(f"{path} is no MATLAB file that can be read ({error}): get it again") from error

    def __getitem__(self, name: str) -> Any:
        if name not in self.arrays:
            held = ", ".join(sorted(self.arrays)) or "nothing"
            raise ValueError(f"{self.path}: array {name!r} is missing, it holds {held}: get the file again")
        return self.arrays[name]

    def one_hot(self, name: str) -> np.ndarray:
        """Classes of rows that hold a single one."""
        rows = self[name]
        if rows.ndim != 2 or rows.shape[1] != CLASSES:
            raise ValueError(
                f"{self.path}: {name!r} has shape {rows.shape}: expected [n, {CLASSES}], a one in each row;"
                " get the file again"
            )
        if (bad := np.flatnonzero(((rows != 0).sum(1) != 1) | (rows.max(1) != 1))).size:
            raise ValueError(
                f"{self.path}: {name!r}, record {bad[0]} is not one class: expected a single one in {CLASSES}"
                " numbers; correct or remove it"
            )
        return rows.argmax(1)


def _mnist(file: _File) -> tuple[Any, Any]:
    images = file["train_28"]
    return (images[..., None] if images.ndim == 3 else images), file.one_hot("label_train")


def _mnist_m(file: _File) -> tuple[Any, Any]:
    return file["train"], file.one_hot("label_train")


def _usps(file: _File) -> tuple[Any, Any]:
    """Cells: training images and labels in the first row, those for tests in the second."""
    cells = file["dataset"]
    if cells.dtype != object or cells.ndim != 2 or cells.shape[1] < 2:
        raise ValueError(
            f"{file.path}: 'dataset' is {cells.dtype} {cells.shape}: expected cells with images and labels"
        )
    images = np.asarray(cells[0][0])
    if images.size % SIZE**2:
        raise ValueError(f"{file.path}: 'dataset' has images of shape {images.shape}: expected 28 x 28")
    return images.reshape(-1, SIZE, SIZE, 1), np.asarray(cells[0][1]).ravel()


def _svhn(file: _File) -> tuple[Any, Any]:
    labels = file["y"].ravel()
    if (bad := np.flatnonzero((labels < 1) | (labels > CLASSES))).size:
        raise ValueError(
            f"{file.path}: 'y', record {bad[0]} holds {labels[bad[0]]}: SVHN's labels go from 1 to 10, which"
            " stands for the digit 0; correct or remove it"
        )
    return np.moveaxis(file["X"], -1, 0), labels % CLASSES


def _synthetic(file: _File) -> tuple[Any, Any]:
    return file["train_data"], file["train_label"].ravel()
