"""The domains that are trained: five of digits, four of reviews, four of photographed objects.

Where the files are not there, scikit-learn's digits in made domains stand in: real images, but no benchmark.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Num

from experiments.npz import load_npz
from experiments.rep_mtl.office_caltech import DATA as OFFICE
from experiments.rep_mtl.office_caltech import load_office

FOLDER = Path(os.environ.get("JAXNEG_DATA", Path(__file__).parents[3] / "shared" / "data")) / "fedka"
DIGITS, REVIEWS = FOLDER / "digits5_mini.npz", FOLDER / "amazon_reviews_5000.npz"
"""Where the files are looked for."""
DIGIT_DOMAINS = ("mt", "mm", "up", "op", "sy")
REVIEW_DOMAINS = ("books", "dvd", "electronics", "kitchen")
SIZE, COLUMNS = 16, 1000
"""Side of the small digits in pixels; columns of the counts that are taken, roughly the most frequent."""
MOST = 1797
"""Images of a small digit domain, as many as the optical digits are: two more have 1800, and each length of a
target compiles anew."""
MADE = ("plain", "inverted", "noisy", "tinted", "transposed")


class Domain(NamedTuple):
    """A domain's examples."""

    name: str
    x: Num[np.ndarray, "examples ..."]
    y: Int[np.ndarray, " examples"]
    test_x: Num[np.ndarray, "tested ..."] | None = None
    """Examples that no training sees, where the domain has some."""
    test_y: Int[np.ndarray, " tested"] | None = None


class Domains(NamedTuple):
    """Domains of the same classes."""

    title: str
    parts: tuple[Domain, ...]
    classes: int
    made: bool = False
    """Whether they stand in for a file that is not there."""


def load_digits(path: Path = DIGITS) -> Domains:
    """The five small digit domains, at most 1797 images of each.

    Args:
        path: an npz file with bytes ``x_<domain> [n, 16, 16, 3]`` and labels ``y_<domain> [n]``.

    Returns:
        MNIST, MNIST-M, USPS, optical and synthetic digits.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not as it should be. The message names it, what is wrong, and the remedy.
    """
    arrays = _arrays(path)
    parts = []
    for name in DIGIT_DOMAINS:
        x, y = (_array(path, arrays, f"{kind}_{name}") for kind in "xy")
        if x.dtype != np.uint8 or x.shape[1:] != (SIZE, SIZE, 3) or not len(x):
            raise ValueError(
                f"{path}: array 'x_{name}' has shape {x.shape} and dtype {x.dtype}: expected uint8 [n,"
                f" {SIZE}, {SIZE}, 3], copy the file again"
            )
        y = checked_labels(f"{path}: array 'y_{name}'", y, len(x), 10)
        parts.append(Domain(name, x[:MOST], y[:MOST]))
    return Domains("Five digit domains", tuple(parts), 10)


def load_reviews(path: Path = REVIEWS, columns: int = COLUMNS) -> Domains:
    """The four domains of Amazon reviews: logarithms of one plus the counts of words and pairs of words.

    For each domain and split (train, test) the file has a sparse matrix of counts: ``<domain>_<split>_data``,
    ``..._indices``, ``..._indptr``, and the labels ``..._y``, 1 for a positive review.

    Args:
        path: an npz file.
        columns: how many of the columns to take.

    Returns:
        Books, DVDs, electronics and kitchen ware, with test examples.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not as it should be. The message names it, what is wrong, and the remedy.
    """
    arrays = _arrays(path)

    def split(domain: str, which: str) -> tuple[np.ndarray, np.ndarray]:
        name = f"{domain}_{which}"
        data, indices, indptr, y = (
            _array(path, arrays, f"{name}_{kind}") for kind in ("data", "indices", "indptr", "y")
        )
        rows = len(indptr) - 1
        rises = rows >= 1 and indptr[0] == 0 and (np.diff(indptr) >= 0).all()
        if not rises or indptr[-1] != len(data) or len(data) != len(indices):
            raise ValueError(
                f"{path}: '{name}_indptr' does not divide {len(data)} counts and {len(indices)} columns into"
                " rows: copy the file again"
            )
        x = np.zeros((rows, columns), np.float32)
        row, here = np.repeat(np.arange(rows), np.diff(indptr)), indices < columns
        x[row[here], indices[here]] = np.log1p(data[here].astype(np.float32))
        return x, checked_labels(f"{path}: array '{name}_y'", y, rows, 2)

    parts = (Domain(name, *split(name, "train"), *split(name, "test")) for name in REVIEW_DOMAINS)
    return Domains("Amazon reviews", tuple(parts), 2)


def load_objects(path: Path = OFFICE) -> Domains:
    """Office-Caltech10 as square roots of shares of SURF words, not standardised within a domain.

    Args:
        path: as `experiments.rep_mtl.office_caltech.load_office` takes it.

    Returns:
        Amazon, Caltech, DSLR and webcam.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not as it should be.
    """
    office = load_office(path)
    rows = [office.domain == place for place in range(len(office.names))]
    parts = (Domain(name, office.x[r], office.y[r]) for name, r in zip(office.names, rows, strict=True))
    return Domains("Office-Caltech10", tuple(parts), 10)


def made_images(domains: int = len(MADE)) -> Domains:
    """What stands in for the digit domains: scikit-learn's digits, each in one of five made domains.

    As they are, inverted, with noise, in colours on colours, transposed.

    Args:
        domains: how many of these.

    Returns:
        Bytes ``[n, 16, 16, 3]``.
    """
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    rng = np.random.default_rng(0)
    parts = []
    order = rng.permutation(1797)[: 1797 // domains * domains]  # domains of one size share their programs
    for name, rows in zip(MADE[:domains], np.split(order, domains), strict=True):
        grey = digits.images[rows].repeat(2, 1).repeat(2, 2)[..., None] / 16 * np.ones(3)  # pyright: ignore
        if name == "inverted":
            grey = 1 - grey
        elif name == "noisy":
            grey = 0.6 * grey + 0.4 * rng.random((len(rows), SIZE, SIZE, 1))
        elif name == "tinted":
            ink, paper = rng.random((2, len(rows), 1, 1, 3))
            grey = grey * ink + (1 - grey) * 0.5 * paper
        elif name == "transposed":
            grey = grey.swapaxes(1, 2)
        x = np.round(255 * grey).astype(np.uint8)
        parts.append(Domain(name, x, digits.target[rows].astype(np.int32)))  # pyright: ignore
    return Domains("Digits in made domains", tuple(parts), 10, made=True)


def made_rows() -> Domains:
    """What stands in for reviews and objects: the same digits as rows of 64 numbers, in four domains.

    Returns:
        Numbers from 0 to 1 ``[n, 64]``; a quarter of each domain is for tests.
    """
    images = made_images(4)
    parts = []
    for domain in images.parts:
        x = domain.x[:, ::2, ::2].mean(-1, dtype=np.float32).reshape(len(domain.x), -1) / np.float32(255)
        cut = 3 * len(x) // 4
        parts.append(Domain(domain.name, x[:cut], domain.y[:cut], x[cut:], domain.y[cut:]))
    return images._replace(parts=tuple(parts))


def checked_labels(where: str, y: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Labels, one for each example, from 0 on.

    Args:
        where: what messages begin with.
        y: the labels.
        count: how many there should be.
        classes: how many they may tell apart.

    Returns:
        ``int32 [count]``.

    Raises:
        ValueError: they are not so. The message names the record and the remedy.

    Example:
        >>> checked_labels("y", np.array([1, 0], np.uint8), 2, 2).dtype
        dtype('int32')
    """
    if y.shape != (count,) or y.dtype.kind not in "iu":
        raise ValueError(
            f"{where} has shape {y.shape} and dtype {y.dtype}: expected a whole number for each of {count}"
            " examples"
        )
    if bad := np.flatnonzero((y < 0) | (y >= classes)).tolist():
        raise ValueError(
            f"{where}, record {bad[0]} holds {y[bad[0]]}: classes go from 0 to {classes - 1}; correct or"
            " remove it"
        )
    return y.astype(np.int32)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: set JAXNEG_DATA to the folder that holds fedka/{path.name}"
        )
    return load_npz(path)


def _array(path: Path, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise ValueError(
            f"{path}: array {name!r} is missing, it holds {', '.join(sorted(arrays)) or 'nothing'}: copy the"
            " file again"
        )
    return arrays[name]
