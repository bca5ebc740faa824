"""What must be equal, whatever the data: UNPG without pairs, its scalar, and its classes on many devices."""

import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from experiments.isolated import available_cores, in_a_process
from jaxneg.face import margin_logits, sharded_margin_softmax, unpg_log_partition, unpg_loss

SHARDS = (1, 2, 4, 8)
CLASSES, DIM, BATCH, SCALE = 21, 16, 24, 16.0
"""21 classes do not divide by 2, 4 or 8."""


def relative_errors(seeds: int) -> dict[str, np.ndarray]:
    """How far two ways to the same number are from each other, relative to it.

    Args:
        seeds: how many random features, centres and labels.

    Returns:
        ``without_pairs``: UNPG's loss of a batch without negatives, beside the plain head's. ``scalar``: the
        loss with the scalar, beside the official tiling of all pairs. ``sharded``: loss and gradients with
        classes on 1, 2, 4 and 8 devices, beside those on one; the largest. One number for each seed.
    """
    sharded = in_a_process(available_cores(), sharded_errors, seeds)
    found = [_errors(seed) for seed in range(seeds)]
    return {
        "without_pairs": np.array([error[0] for error in found]),
        "scalar": np.array([error[1] for error in found]),
        "sharded": sharded,
    }


def tiled_loss(logits: np.ndarray, labels: np.ndarray, pairs: np.ndarray, s: float) -> np.ndarray:
    """The official form: every row of the logits with all pairs beside it, and the cross-entropy of that.

    Args:
        logits: scaled, with margins, ``[batch, classes]``.
        labels: classes.
        pairs: similarities of the pairs that are kept.
        s: scale.

    Returns:
        One loss for each row, in float64.

    Example:
        >>> tiled_loss(np.zeros((1, 2)), np.array([0]), np.zeros(2), 1.0).round(4).tolist()
        [1.3863]
    """
    wide = np.concatenate([logits, np.tile(s * pairs, (len(logits), 1))], axis=1).astype(np.float64)
    largest = wide.max(1)
    lse = np.log(np.exp(wide - largest[:, None]).sum(1)) + largest
    return lse - wide[np.arange(len(wide)), labels]


def sharded_errors(seeds: int) -> np.ndarray:
    """In a process of eight devices: how far the sharded loss and its gradients are from the whole ones."""
    jax.config.update("jax_platforms", "cpu")  # virtual devices are the CPU's
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", max(SHARDS))
    devices = jax.devices("cpu")
    worst = np.zeros(seeds)
    for shards in SHARDS:
        mesh = jax.sharding.Mesh(np.array(devices[:shards]), ("model",), axis_types=(AxisType.Auto,))

        def sharded(x: jax.Array, w: jax.Array, y: jax.Array, mesh: jax.sharding.Mesh = mesh) -> jax.Array:
            log_partition, _ = unpg_log_partition(x, y, s=SCALE)
            losses = sharded_margin_softmax(
                x, w, y, mesh=mesh, axis="model", s=SCALE, m=0.35, extra_log_partition=log_partition
            )
            return losses.mean()

        def whole(x: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
            return unpg_loss(x, w, y, s=SCALE, m=0.35)[0].mean()

        both = [jax.jit(jax.value_and_grad(loss, (0, 1))) for loss in (sharded, whole)]
        for seed in range(seeds):
            ours, reference = (jax.tree.map(np.asarray, loss(*_example(seed))) for loss in both)
            errors = jax.tree.map(lambda a, b: np.abs(a - b).max() / np.abs(b).max(), ours, reference)
            worst[seed] = max(worst[seed], *jax.tree.leaves(errors))
    return worst


def _example(seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal((BATCH, DIM)), rng.standard_normal((CLASSES, DIM))
    return (
        jnp.asarray(x, jnp.float32),
        jnp.asarray(w, jnp.float32),
        jnp.asarray(rng.integers(0, CLASSES, BATCH)),
    )


def _errors(seed: int) -> tuple[float, float]:
    x, w, y = _example(seed)
    alone = jnp.full_like(y, 3)
    with_pairs, plain = (np.asarray(unpg_loss(x, w, alone, s=SCALE, m=0.35, r=r)[0]) for r in (1.5, None))
    loss = np.asarray(unpg_loss(x, w, y, s=SCALE, m=0.35)[0])
    logits = np.asarray(margin_logits(x, w, y, s=SCALE, m=0.35)[0])
    unit = np.asarray(x, np.float64) / np.linalg.norm(x, axis=1, keepdims=True)
    rows, columns = np.triu_indices(len(x), 1)
    pairs = np.sort((unit @ unit.T)[rows, columns][np.asarray(y)[rows] != np.asarray(y)[columns]])
    q1, q3 = pairs[len(pairs) // 4], pairs[3 * len(pairs) // 4]
    pairs = pairs[(pairs >= q1 - 1.5 * (q3 - q1)) & (pairs <= q3 + 1.5 * (q3 - q1))]
    expected = tiled_loss(logits, np.asarray(y), pairs, SCALE)
    return float(np.abs(with_pairs / plain - 1).max()), float(np.abs(loss / expected - 1).max())
