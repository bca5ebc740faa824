"""Trains the small encoder with a head, with or without UNPG, and measures it on identities it never saw.

Epochs run in one loop on the device. Scale, margin and whiskers are arguments of the compiled program, so
that one program serves every setting that uses the pairs, and one those that do not.
"""

import re
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.unpg.identities import Split
from experiments.unpg.network import EMBEDDING, encoder
from jaxneg.face import (
    all_pairs_scores,
    tar_at_far,
    tenfold_accuracy,
    unpg_loss,
    wdfs_stats,
)

SHIFT = 2
"""Pixels by which an image is moved at most."""
WARM_UP, DECAY, CLIP = 0.15, 5e-4, 5.0
FARS = (1e-2, 1e-3, 1e-4)
MODEL = encoder()


@dataclass(frozen=True)
class Setting:
    """A head, what is added to it, and how many labels are wrong."""

    s: float = 16.0
    m: float = 0.0
    """CosFace's margin; 0 is the normalised softmax."""
    r: float | None = None
    """Whiskers of the filter; infinity keeps all pairs, None uses none."""
    noise: float = 0.0
    """Share of the training labels that are redrawn."""

    @property
    def head(self) -> str:
        """Name of the head."""
        return f"CosFace s={self.s:g} m={self.m:g}" if self.m else f"softmax s={self.s:g}"

    @property
    def pairs(self) -> str:
        """What is done with the pairs."""
        return "off" if self.r is None else "no filter" if np.isinf(self.r) else f"r = {self.r:g}"

    @property
    def stage(self) -> str:
        """The name as a file may have it."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", f"{self.head} {self.pairs} noise {self.noise:g}")


class Scores(NamedTuple):
    """What the test pairs say, for each seed; percentages but for the cosines."""

    tar: Float[np.ndarray, "seeds fars"]
    """TAR at the FARs of `FARS`, by the conservative rule."""
    tenfold: Float[np.ndarray, " seeds"]
    """Accuracy over ten folds of as many pairs of one identity as of two."""
    rank_one: Float[np.ndarray, " seeds"]
    """Images whose nearest other image shows the same identity."""
    overlap: Float[np.ndarray, " seeds"]
    """Area that both histograms of cosines share."""
    mean_sp: Float[np.ndarray, " seeds"]
    mean_sn: Float[np.ndarray, " seeds"]
    kept: Float[np.ndarray, " seeds"]
    """Share of the training pairs that the filter kept, the mean over the steps."""
    histogram_sp: Float[np.ndarray, "seeds bins"]
    histogram_sn: Float[np.ndarray, "seeds bins"]


def train(
    split: Split, labels: np.ndarray, setting: Setting, seed: int, epochs: int, batch: int, peak: float
) -> tuple[np.ndarray, float]:
    """Trains one encoder.

    Args:
        split: images.
        labels: of the training images, right or wrong.
        setting: the head, and what is added to it.
        seed: of parameters, batches and shifts.
        epochs: passes over the training images.
        batch: images in a step; what does not fill a batch waits for the next epoch's shuffle.
        peak: highest learning rate.

    Returns:
        Embeddings of the test images, and the share of the pairs that was kept.
    """
    used = setting.r is not None
    embeddings, kept = _trained(
        used,
        int(labels.max()) + 1,
        epochs,
        min(batch, len(labels)),
        jnp.asarray(split.train_x),
        jnp.asarray(labels),
        jnp.asarray(split.test_x),
        jnp.array([setting.s, setting.m, np.inf if setting.r is None else setting.r, peak]),
        jax.random.key(seed),
    )
    return np.asarray(embeddings), float(kept)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _trained(
    used: bool,
    classes: int,
    epochs: int,
    batch: int,
    x: Array,
    y: Array,
    test: Array,
    numbers: Array,
    key: Array,
) -> tuple[Array, Array]:
    s, m, r, peak = numbers
    per_epoch = len(x) // batch
    steps = epochs * per_epoch
    warm = max(1, round(WARM_UP * steps))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, warm, max(steps, warm + 1))
    tx = optax.chain(
        optax.clip_by_global_norm(CLIP),
        optax.scale_by_adam(),
        optax.add_decayed_weights(DECAY),
        optax.scale_by_schedule(schedule),
    )
    model_key, head_key, key = jax.random.split(key, 3)
    limit = np.sqrt(6 / (classes + EMBEDDING))
    params = {
        "encoder": MODEL.init(model_key),
        "head": jax.random.uniform(head_key, (classes, EMBEDDING), minval=-limit, maxval=limit),
    }

    def loss(params: Any, x: Array, y: Array) -> tuple[Array, Array]:
        features = MODEL.apply(params["encoder"], x)
        losses, aux = unpg_loss(features, params["head"], y, head="cosface", s=s, m=m, r=r if used else None)
        return losses.mean(), aux["n_kept"] / jnp.maximum(aux["n_neg"], 1)

    def step(state: Any, drawn: tuple[Array, Array]) -> tuple[Any, Array]:
        params, opt_state = state
        rows, key = drawn
        grads, kept = jax.grad(loss, has_aux=True)(params, _shifted(x[rows], key), y[rows])
        updates, opt_state = tx.update(grads, opt_state, params)
        return (jax.tree.map(lambda p, u: p - peak * u, params, updates), opt_state), kept

    def epoch(state: Any, key: Array) -> tuple[Any, Array]:
        order, shifts = jax.random.split(key)
        rows = jax.random.permutation(order, len(x))[: per_epoch * batch].reshape(per_epoch, batch)
        return jax.lax.scan(step, state, (rows, jax.random.split(shifts, per_epoch)))

    (params, _), kept = jax.lax.scan(epoch, (params, tx.init(params)), jax.random.split(key, epochs))
    # Statistics of all training images together, once training is over.
    stats = MODEL.statistics(params["encoder"], x)
    return MODEL.evaluate(params["encoder"], stats, test), kept.mean()


def _shifted(x: Float[Array, "batch side side"], key: Array) -> Float[Array, "batch side side"]:
    """Images moved by up to two pixels, with zeros behind them."""
    padded = jnp.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)))
    corners = jax.random.randint(key, (len(x), 2), 0, 2 * SHIFT + 1)
    return jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, corner, x.shape[1:]))(padded, corners)


def measured(embeddings: np.ndarray, labels: np.ndarray, kept: float, seed: int) -> dict[str, np.ndarray]:
    """The scores of one encoder, by the names of `Scores`.

    Args:
        embeddings: of the test images.
        labels: whom they show.
        kept: share of the training pairs that was kept.
        seed: of the balanced pairs.

    Returns:
        Numbers and histograms.
    """
    scores, same = all_pairs_scores(embeddings, labels)
    positive, negative = scores[same], scores[~same]
    rng = np.random.default_rng([seed, 10])
    count = min(len(positive), len(negative)) // 10 * 10
    flags = np.tile([True, False], count)
    balanced = np.empty(2 * count)
    balanced[flags] = rng.permutation(positive)[:count]
    balanced[~flags] = rng.permutation(negative)[:count]
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    similar = unit @ unit.T
    np.fill_diagonal(similar, -np.inf)
    stats = wdfs_stats(positive, negative)
    return {
        "tar": 100 * tar_at_far(scores, same, np.array(FARS)),
        "tenfold": np.asarray(100 * tenfold_accuracy(balanced, flags)[0].mean()),
        "rank_one": np.asarray(100 * np.mean(labels[similar.argmax(1)] == labels)),
        "overlap": np.asarray(stats.overlap),
        "mean_sp": np.asarray(stats.mean_sp),
        "mean_sn": np.asarray(stats.mean_sn),
        "kept": np.asarray(kept),
        "histogram_sp": stats.histogram_sp,
        "histogram_sn": stats.histogram_sn,
    }
