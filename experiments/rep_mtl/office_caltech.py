"""Part A: Office-Caltech10, four domains of the same ten objects as four tasks.

The features are 800-bin histograms of SURF words (Gong et al., "Geodesic Flow Kernel for Unsupervised Domain
Adaptation", CVPR 2012): row over its sum, square root, standardised by the training rows of all domains. Each
domain is cut 60/20/20; the middle part stays unused. The network has one hidden layer, which all tasks share,
and a linear head for each; each task has images of its own in a batch, and Z is the hidden layer.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.npz import load_npz
from experiments.rep_mtl.spectra import exponents
from experiments.rep_mtl.training import Method, Network, Params, train

FILE = Path("fedka") / "office_caltech10_surf.npz"
DATA = Path(os.environ.get("JAXNEG_DATA", Path(__file__).parents[3] / "shared" / "data")) / FILE
"""Where the file is looked for."""
DOMAINS = ("amazon", "caltech", "dslr", "webcam")
CLASSES = 10
MADE = ("plain", "transposed", "inverted", "noisy")
MADE_SIZES = (680, 797, 111, 209)
"""Rows of the made domains, in proportion to those of the real ones."""

WIDTH = 64
BATCH = 32
TRAIN, TEST = 0.6, 0.2
"""Shares of a domain's rows."""


class Office(NamedTuple):
    """Histograms of all domains in one table."""

    x: Float[np.ndarray, "rows features"]
    """Square roots of each row's shares."""
    y: Int[np.ndarray, "rows"]
    domain: Int[np.ndarray, "rows"]
    names: tuple[str, ...]
    """Of the domains."""

    @property
    def title(self) -> str:
        """What figures and tables call it."""
        return "Office-Caltech10" if self.names == DOMAINS else "digits in made domains"


class Split(NamedTuple):
    """A cut of every domain."""

    train: tuple[Int[np.ndarray, "rows"], ...]
    """Rows of each domain."""
    test: tuple[Int[np.ndarray, "rows"], ...]


def load_office(path: Path = DATA) -> Office:
    """Reads the file.

    Args:
        path: an npz file with counts ``x_<domain> [rows, bins]`` and labels 0 to 9 ``y_<domain> [rows]``.

    Returns:
        All domains.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not as it should be. The message names it, what is wrong, and the remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: set JAXNEG_DATA to the folder that holds {FILE}")
    arrays = load_npz(path)
    counts, labels = zip(*(_domain(path, arrays, name) for name in DOMAINS), strict=True)
    if len(widths := {x.shape[1] for x in counts}) > 1:
        raise ValueError(f"{path}: the domains have {sorted(widths)} bins: all need the same, copy it again")
    return _office(counts, labels, DOMAINS)


def _domain(path: Path, arrays: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    for key in (f"x_{name}", f"y_{name}"):
        if key not in arrays:
            raise ValueError(
                f"{path}: array {key!r} is missing, it holds {', '.join(sorted(arrays)) or 'nothing'}: the"
                f" file needs x_ and y_ of {', '.join(DOMAINS)}, copy it again"
            )
    x, y = arrays[f"x_{name}"], arrays[f"y_{name}"]
    if x.ndim != 2 or y.shape != x.shape[:1] or x.dtype.kind not in "biuf" or y.dtype.kind not in "iu":
        raise ValueError(
            f"{path}: 'x_{name}' has shape {x.shape} and dtype {x.dtype}, 'y_{name}' {y.shape} and {y.dtype}:"
            " expected numbers [rows, bins] and whole numbers [rows]"
        )
    empty = np.flatnonzero(~(np.isfinite(x).all(1) & (x >= 0).all(1) & (x.sum(1) > 0))).tolist()
    if empty:
        raise ValueError(
            f"{path}: array 'x_{name}', row {empty[0]} is no histogram (counts of 0 or more, not all 0):"
            " remove it"
        )
    if bad := np.flatnonzero((y < 0) | (y >= CLASSES)).tolist():
        raise ValueError(
            f"{path}: array 'y_{name}', row {bad[0]} holds {y[bad[0]]}: labels go from 0 to {CLASSES - 1}"
        )
    if len(x) < 1 / TEST:
        raise ValueError(
            f"{path}: {name} has {len(x)} rows: expected at least {1 / TEST:g}, to be cut in three"
        )
    return x.astype(np.float64), y.astype(np.int32)


def made_domains() -> Office:
    """What stands in where there is no file: scikit-learn's 8 x 8 digits in four domains of unlike size.

    The digits are real, the domains are made: as they are, transposed, inverted, with noise.

    Returns:
        All domains; no digit is in two of them.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    rng = np.random.default_rng(0)
    parts = np.split(rng.permutation(len(digits.target)), np.cumsum(MADE_SIZES)[:-1])
    images = [digits.images[part] for part in parts]
    noisy = np.maximum(images[3] + 4 * rng.normal(size=images[3].shape), 0)
    changed = (images[0], images[1].swapaxes(1, 2), 16 - images[2], noisy)
    return _office([x.reshape(len(x), -1) for x in changed], [digits.target[part] for part in parts], MADE)


def _office(counts: Any, labels: Any, names: tuple[str, ...]) -> Office:
    x = np.sqrt(np.concatenate([x / x.sum(1, keepdims=True) for x in counts]))
    domain = np.repeat(np.arange(len(names)), [len(y) for y in labels])
    return Office(x.astype(np.float32), np.concatenate(labels).astype(np.int32), domain, names)


def split_office(office: Office, seed: int) -> Split:
    """Cuts every domain at random: 60 % to train on, the last 20 % to test on.

    Args:
        office: the domains.
        seed: of the cut.

    Returns:
        Rows.
    """
    rng = np.random.default_rng([seed, 0])
    orders = [rng.permutation(np.flatnonzero(office.domain == d)) for d in range(len(office.names))]
    train = tuple(order[: int(TRAIN * len(order))] for order in orders)
    return Split(train, tuple(order[-int(TEST * len(order)) :] for order in orders))


def draw_rows(
    office: Office, split: Split, seed: int, steps: int, paired: bool = False
) -> Int[np.ndarray, "steps tasks batch"]:
    """Training rows of every batch, with replacement.

    Args:
        office: the domains.
        split: a cut of them.
        seed: of the draw.
        steps: how many batches.
        paired: whether the rows of all tasks at one place of a batch have the same class.

    Returns:
        Rows of the table.
    """
    rng = np.random.default_rng([seed, 1])
    if not paired:
        return np.stack([rng.choice(rows, (steps, BATCH)) for rows in split.train], axis=1)
    known = [c for c in range(CLASSES) if all((office.y[rows] == c).any() for rows in split.train)]
    classes = rng.choice(known, (steps, BATCH))
    drawn = np.empty((steps, len(split.train), BATCH), np.int64)
    for task, rows in enumerate(split.train):
        for c in known:
            here = classes == c
            drawn[:, task][here] = rng.choice(rows[office.y[rows] == c], here.sum())
    return drawn


def first_params(seed: int, features: int, tasks: int, alone: bool = False) -> Params:
    """He's normal initialisation in the encoder, a standard deviation of 1/8 in the heads.

    Args:
        seed: of the draw.
        features: numbers in a row.
        tasks: heads.
        alone: whether each task has an encoder of its own, all beginning alike.

    Returns:
        ``{"encoder", "heads"}``.
    """
    encoder_key, head_key = jax.random.split(jax.random.key(seed))
    kernel = jax.random.normal(encoder_key, (features, WIDTH)) * (2 / features) ** 0.5
    encoder = {"kernel": kernel, "bias": jnp.zeros((1, WIDTH))}
    if alone:
        encoder = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (tasks, *leaf.shape)), encoder)
    heads = jax.random.normal(head_key, (tasks, WIDTH, CLASSES)) * WIDTH**-0.5
    return {"encoder": encoder, "heads": {"kernel": heads, "bias": jnp.zeros((tasks, CLASSES))}}


def encode(encoder: Params, batch: dict[str, Array]) -> Float[Array, "tasks batch channels"]:
    """The hidden layer.

    Args:
        encoder: its parameters.
        batch: rows ``x [tasks, batch, features]``.

    Returns:
        Z, of each task's own rows.
    """
    return jax.nn.relu(batch["x"] @ encoder["kernel"] + encoder["bias"])


def logits(heads: Params, Z: Float[Array, "tasks batch channels"]) -> Float[Array, "tasks batch classes"]:
    """The heads.

    Args:
        heads: their parameters.
        Z: the hidden layer.

    Returns:
        Logits.
    """
    return Z @ heads["kernel"] + heads["bias"][:, None]


class _Scale(NamedTuple):
    """How a seed standardises the features."""

    mean: Any
    spread: Any


def _batch(office: dict[str, Array], scale: _Scale, rows: Array) -> dict[str, Array]:
    return {"x": (office["x"][rows] - scale.mean) / scale.spread, "y": office["y"][rows]}


@lru_cache
def _optimizer(steps: int) -> optax.GradientTransformation:
    del steps
    return optax.adamw(1e-3, weight_decay=1e-4)


NETWORK = Network(encode, logits, _batch, _optimizer, own_inputs=True)


def train_office(
    office: Office, splits: list[Split], method: Method, steps: int
) -> dict[str, Float[np.ndarray, "seeds ..."]]:
    """Trains on every split at once.

    Args:
        office: the domains.
        splits: one for each seed.
        method: how to train.
        steps: how long.

    Returns:
        Test accuracies ``accuracy [seeds, tasks]``, percent; ``entropy``, ``positive`` and ``negative``
        ``[seeds, steps / 10]``; power-law exponents ``encoder [seeds]`` and ``heads [seeds, tasks]``, without
        the encoders of single-task networks.
    """
    seeds, tasks, features = range(len(splits)), len(office.names), office.x.shape[1]
    params = [first_params(seed, features, tasks, method.alone) for seed in seeds]
    draws = [draw_rows(office, split, seed, steps, method.paired) for seed, split in enumerate(splits)]
    pooled = [office.x[np.concatenate(split.train)] for split in splits]
    spread = [np.where((std := x.std(0)) > 0, std, 1.0) for x in pooled]
    scale = _Scale(jnp.asarray([x.mean(0) for x in pooled]), jnp.asarray(spread))
    common = {"x": jnp.asarray(office.x), "y": jnp.asarray(office.y)}
    params, seen = train(NETWORK, method, _stack(params), common, scale, jnp.asarray(np.stack(draws)))
    found = {
        "accuracy": _accuracy(params, common, scale, splits),
        **seen._asdict(),
        "heads": exponents(params["heads"]["kernel"]),
    }
    return found if method.alone else found | {"encoder": exponents(params["encoder"]["kernel"])}


def untrained(office: Office, seeds: int) -> dict[str, Float[np.ndarray, "seeds ..."]]:
    """The exponents that the first parameters have already.

    Args:
        office: the domains.
        seeds: how many.

    Returns:
        ``encoder [seeds]`` and ``heads [seeds, tasks]``.
    """
    first = [first_params(seed, office.x.shape[1], len(office.names)) for seed in range(seeds)]
    params = _stack(first)
    return {part: exponents(params[part]["kernel"]) for part in ("encoder", "heads")}


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _accuracy(params: Params, common: Any, scale: _Scale, splits: list[Split]) -> np.ndarray:
    most = max(len(rows) for rows in splits[0].test)
    padded = np.array([[np.pad(rows, (0, most - len(rows)), "edge") for rows in s.test] for s in splits])
    right = np.asarray(_right(params, common, scale, jnp.asarray(padded)))
    sizes = [len(rows) for rows in splits[0].test]
    return 100 * np.stack([right[:, t, :size].mean(1) for t, size in enumerate(sizes)], axis=1)


@jax.jit
def _right(params: Params, common: Any, scale: _Scale, rows: Array) -> Array:
    def of_seed(seed: tuple[Params, _Scale, Array]) -> Array:
        params, scale, rows = seed
        batch = _batch(common, scale, rows)
        return jnp.argmax(logits(params["heads"], encode(params["encoder"], batch)), -1) == batch["y"]

    return jax.lax.map(of_seed, (params, scale, rows))
