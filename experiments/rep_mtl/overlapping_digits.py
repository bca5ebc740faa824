"""Part B: two digits that overlap on one canvas, the class of each a task; the negative control.

MultiMNIST (Sabour et al., arXiv:1710.09829) made of scikit-learn's 8 x 8 digits: on a canvas of 12 x 12 one
digit lies at the upper left, the other at the lower right, pixel by pixel the larger counts, noise is added.
Both tasks see the same image and need the same 9 positions of Z, which an encoder of two layers makes; the
heads are linear.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.rep_mtl.training import Method, Network, Params, train

SIZE, CANVAS, OFFSET = 8, 12, 4
NOISE, BRIGHTEST = 0.3, 1.5
TRAIN_DIGITS = 1200
TRAIN_PAIRS, TEST_PAIRS = 600, 1500
POSITIONS, CHANNELS = 9, 12
CLASSES = 10
BATCH = 64
TASKS = ("upper left", "lower right")


class Pairs(NamedTuple):
    """Images of two digits."""

    x: Float[np.ndarray, "*seeds pairs pixels"]
    y: Int[np.ndarray, "*seeds tasks pairs"]
    """The class of each digit."""
    parts: Int[np.ndarray, "*seeds tasks pairs"]
    """Which digits of scikit-learn's they are."""


def compose(
    first: Float[np.ndarray, "pairs 8 8"],
    second: Float[np.ndarray, "pairs 8 8"],
    noise: Float[np.ndarray, "pairs 12 12"],
) -> Float[np.ndarray, "pairs 144"]:
    """Lays two digits over each other.

    Args:
        first: at the upper left, from 0 to 1.
        second: at the lower right.
        noise: what is added.

    Returns:
        Pixels from 0 to 1.5.
    """
    canvas = np.zeros((len(first), CANVAS, CANVAS))
    canvas[:, :SIZE, :SIZE] = first
    corner = canvas[:, OFFSET:, OFFSET:]
    np.maximum(corner, second, out=corner)
    return np.clip(canvas + noise, 0, BRIGHTEST).reshape(len(first), -1)


def draw_pairs(seed: int) -> tuple[Pairs, Pairs]:
    """Pairs to train and to test on; the digits are parted before they are paired.

    Args:
        seed: of the cut, of the pairs and of the noise.

    Returns:
        600 and 1500 pairs.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(digits.target))

    def draw(pool: np.ndarray, count: int) -> Pairs:
        parts = rng.choice(pool, (2, count))
        first, second = digits.images[parts] / 16
        x = compose(first, second, NOISE * rng.normal(size=(count, CANVAS, CANVAS)))
        return Pairs(x.astype(np.float32), digits.target[parts].astype(np.int32), parts)

    return draw(order[:TRAIN_DIGITS], TRAIN_PAIRS), draw(order[TRAIN_DIGITS:], TEST_PAIRS)


def first_params(seed: int, alone: bool = False) -> Params:
    """He's normal initialisation in the encoder, ``1 / sqrt(108)`` in the heads.

    Args:
        seed: of the draw.
        alone: whether each task has an encoder of its own, both beginning alike.

    Returns:
        ``{"encoder", "heads"}``.
    """
    keys, units, tasks = jax.random.split(jax.random.key(seed), 3), POSITIONS * CHANNELS, len(TASKS)
    encoder = {
        "first": jax.random.normal(keys[0], (CANVAS**2, units)) * (2 / CANVAS**2) ** 0.5,
        "first_bias": jnp.zeros((1, units)),
        "second": jax.random.normal(keys[1], (1, CHANNELS, CHANNELS)) * (2 / CHANNELS) ** 0.5,
        "second_bias": jnp.zeros((1, 1, CHANNELS)),
    }
    if alone:
        encoder = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (tasks, *leaf.shape)), encoder)
    heads = jax.random.normal(keys[2], (tasks, units, CLASSES)) * units**-0.5
    return {"encoder": encoder, "heads": {"kernel": heads, "bias": jnp.zeros((tasks, CLASSES))}}


def encode(encoder: Params, batch: dict[str, Array]) -> Float[Array, "*tasks batch positions channels"]:
    """Two layers, the second one at every position alike.

    Args:
        encoder: its parameters.
        batch: pixels ``x [batch, 144]``.

    Returns:
        Z ``[batch, 9, 12]``, of single-task networks ``[tasks, batch, 9, 12]``.
    """
    hidden = jax.nn.relu(batch["x"] @ encoder["first"] + encoder["first_bias"])
    hidden = hidden.reshape(*hidden.shape[:-1], POSITIONS, CHANNELS)
    return jax.nn.relu(hidden @ encoder["second"] + encoder["second_bias"])


def logits(
    heads: Params, Z: Float[Array, "*tasks batch positions channels"]
) -> Float[Array, "tasks batch 10"]:
    """The heads.

    Args:
        heads: their parameters.
        Z: the encoder's output.

    Returns:
        Logits.
    """
    return Z.reshape(*Z.shape[:-2], -1) @ heads["kernel"] + heads["bias"][:, None]


def _batch(common: None, pairs: dict[str, Array], rows: Array) -> dict[str, Array]:
    del common
    return {"x": pairs["x"][rows], "y": pairs["y"][:, rows]}


@lru_cache
def _optimizer(steps: int) -> optax.GradientTransformation:
    return optax.adam(optax.piecewise_constant_schedule(2e-3, {steps // 2: 0.5}))


NETWORK = Network(encode, logits, _batch, _optimizer, own_inputs=False)


def train_digits(
    data: list[tuple[Pairs, Pairs]], method: Method, steps: int
) -> dict[str, Float[np.ndarray, "seeds ..."]]:
    """Trains on every seed's pairs at once.

    Args:
        data: from `draw_pairs`, one for each seed.
        method: how to train.
        steps: how long.

    Returns:
        Test accuracies ``accuracy [seeds, tasks]``, percent, and ``entropy``, ``positive`` and ``negative``
        ``[seeds, steps / 10]``.
    """
    seeds = range(len(data))
    params = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(first_params(seed, method.alone) for seed in seeds)
    )
    draws = [np.random.default_rng([seed, 1]).integers(TRAIN_PAIRS, size=(steps, BATCH)) for seed in seeds]
    known, unknown = (
        {"x": jnp.asarray([p.x for p in pairs]), "y": jnp.asarray([p.y for p in pairs])}
        for pairs in zip(*data, strict=True)
    )
    params, seen = train(NETWORK, method, params, None, known, jnp.asarray(np.stack(draws)))
    return {"accuracy": np.asarray(_accuracy(params, unknown)), **seen._asdict()}


@jax.jit
@jax.vmap
def _accuracy(params: Params, pairs: dict[str, Array]) -> Array:
    guesses = jnp.argmax(logits(params["heads"], encode(params["encoder"], pairs)), axis=-1)
    return 100 * jnp.mean(guesses == pairs["y"], axis=1)
