"""Images of identities: people of ORL, characters of Omniglot, and a part of Omniglot that is always there.

A split is open-set: what is tested was never trained.
"""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from experiments.npz import load_npz

DATA = Path(os.environ.get("JAXNEG_DATA", Path(__file__).parents[3] / "shared" / "data")) / "unpg"
"""Where the files are looked for."""
ORL, OMNIGLOT = DATA / "orl_faces_28x23.npz", DATA / "omniglot_small.npz"
TINY = Path(__file__).parent / "tiny" / "omniglot_tiny.npz"
"""40 characters of eight alphabets with 10 images each."""
SMALL_NAME = "40 characters of Omniglot"
TEST_ALPHABETS = ((0, 1), (2, 3), (6, 7))
"""Pairs of alphabets that are held out, one for each seed in turn."""


class Identities(NamedTuple):
    """Images, and whom or what they show."""

    x: Float[np.ndarray, "images side side"]
    """Each of mean 0 and deviation 1."""
    y: Int[np.ndarray, " images"]
    """From 0 on."""
    group: Int[np.ndarray, " images"]
    """What is held out together: the identity itself, or its alphabet."""
    name: str


class Split(NamedTuple):
    """Identities to train with, numbered from 0, and others to test with."""

    train_x: Float[np.ndarray, "images side side"]
    train_y: Int[np.ndarray, " images"]
    test_x: Float[np.ndarray, "images side side"]
    test_y: Int[np.ndarray, " images"]


def load_people(path: Path | None = None) -> Identities:
    """The 40 people of ORL, or where the file is not there 40 characters of Omniglot.

    Args:
        path: an npz file with ``images uint8 [n, 28, 23]`` and ``subject [n]``; None: where it is looked for.

    Returns:
        Images of 28 x 28.

    Raises:
        FileNotFoundError: a path was given and there is no file.
        ValueError: the file is not as it should be. The message names it, and the remedy.
    """
    if path is None and not ORL.is_file():
        few = _characters(TINY, SMALL_NAME)
        return few._replace(group=few.y)
    arrays = _loaded(ORL if path is None else path, ("images", "subject"), (28, 23))
    images = np.pad(arrays["images"], ((0, 0), (0, 0), (2, 3)), mode="edge")
    y = _numbered(arrays["subject"])
    return Identities(_standardised(images), y, y, "ORL faces")


def load_characters(path: Path | None = None) -> Identities:
    """The characters of Omniglot, or where the file is not there 40 of them.

    Args:
        path: an npz file with ``images uint8 [n, 28, 28]``, ``alphabet [n]`` and ``character [n]``; None:
            where it is looked for.

    Returns:
        Images of 28 x 28 in groups of alphabets.

    Raises:
        FileNotFoundError: a path was given and there is no file.
        ValueError: the file is not as it should be. The message names it, and the remedy.
    """
    if path is None and not OMNIGLOT.is_file():
        return _characters(TINY, SMALL_NAME)
    return _characters(OMNIGLOT if path is None else path, "Omniglot")


def half_split(identities: Identities, seed: int) -> Split:
    """Half of the identities to train with, the others to test with.

    Args:
        identities: images of all.
        seed: of the permutation.

    Returns:
        The split.

    Example:
        >>> y = np.repeat(np.arange(4), 2)
        >>> split = half_split(Identities(np.zeros((8, 2, 2)), y, y, "made"), 0)
        >>> len(split.train_x), sorted(set(split.train_y.tolist())), len(set(split.test_y.tolist()))
        (4, [0, 1], 2)
    """
    count = identities.y.max() + 1
    shuffled = np.random.default_rng(100 + seed).permutation(count)
    return _split(identities, np.isin(identities.y, shuffled[: count // 2]))


def alphabet_split(identities: Identities, seed: int) -> Split:
    """Two alphabets to test with; the others to train with, also turned by 90 degrees as further characters.

    Args:
        identities: images in groups of alphabets.
        seed: chooses the two alphabets.

    Returns:
        The split.
    """
    held_out = TEST_ALPHABETS[seed % len(TEST_ALPHABETS)]
    split = _split(identities, ~np.isin(identities.group, held_out))
    turned = np.rot90(split.train_x, axes=(1, 2))
    return split._replace(
        train_x=np.concatenate([split.train_x, turned]),
        train_y=np.concatenate([split.train_y, split.train_y + split.train_y.max() + 1]),
    )


def redrawn(labels: Int[np.ndarray, " images"], share: float, seed: int) -> Int[np.ndarray, " images"]:
    """Labels of which a share is drawn anew, uniformly: label noise.

    Args:
        labels: from 0 on.
        share: of the labels that are redrawn; some keep their class by chance.
        seed: of the draws.

    Returns:
        The labels.

    Example:
        >>> int((redrawn(np.zeros(100, int) + np.arange(100) % 5, 0.2, 0) != np.arange(100) % 5).sum()) <= 20
        True
    """
    rng = np.random.default_rng([seed, 15])
    noisy = labels.copy()
    chosen = rng.permutation(len(labels))[: round(share * len(labels))]
    noisy[chosen] = rng.integers(0, labels.max() + 1, len(chosen))
    return noisy


def _split(identities: Identities, train: np.ndarray) -> Split:
    return Split(
        identities.x[train],
        _numbered(identities.y[train]),
        identities.x[~train],
        _numbered(identities.y[~train]),
    )


def _characters(path: Path, name: str) -> Identities:
    arrays = _loaded(path, ("images", "alphabet", "character"), (28, 28))
    character, alphabet = (_numbered(arrays[key]) for key in ("character", "alphabet"))
    return Identities(_standardised(arrays["images"]), character, alphabet, name)


def _loaded(path: Path, names: tuple[str, ...], shape: tuple[int, int]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no file {path}: set JAXNEG_DATA to the folder that holds unpg/{path.name}"
        )
    arrays = load_npz(path)
    for name in names:
        if name not in arrays:
            raise ValueError(
                f"{path}: array {name!r} is missing, it holds {', '.join(sorted(arrays)) or 'nothing'}:"
                " copy the file again"
            )
    images = arrays["images"]
    if images.ndim != 3 or images.shape[1:] != shape or images.dtype != np.uint8:
        raise ValueError(
            f"{path}: 'images' has shape {images.shape} and dtype {images.dtype}: expected uint8"
            f" [n, {shape[0]}, {shape[1]}], copy the file again"
        )
    for name in names[1:]:
        if arrays[name].shape != images.shape[:1] or arrays[name].dtype.kind not in "iu":
            raise ValueError(
                f"{path}: {name!r} has shape {arrays[name].shape} and dtype {arrays[name].dtype}: expected a"
                f" whole number for each of {len(images)} images, copy the file again"
            )
    if len(np.unique(arrays[names[-1]])) < 4:
        raise ValueError(
            f"{path}: {names[-1]!r} has fewer than 4 identities: nothing to hold out, copy it again"
        )
    return arrays


def _standardised(images: np.ndarray) -> Float[np.ndarray, "images side side"]:
    x = images.astype(np.float32)
    x -= x.mean((1, 2), keepdims=True)
    return x / np.maximum(x.std((1, 2), keepdims=True), 1e-6)


def _numbered(labels: np.ndarray) -> Int[np.ndarray, " images"]:
    return np.unique(labels, return_inverse=True)[1].reshape(-1).astype(np.int32)
