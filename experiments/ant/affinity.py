"""The first observation: gradients agree less the further apart their noise levels are; and clusterings."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from experiments.ant.training import SCHEDULE, TIMESTEPS, Clustering, denoiser, unflat
from jaxneg.diffusion import (
    denoising_loss,
    interval_clustering,
    interval_cost,
    task_affinity_of,
    timestep_intervals,
)

BIN = 200
"""Timesteps in a bin of distances."""


def grid(points: int) -> Int[np.ndarray, " points"]:
    """Every so many timesteps, from 0.

    Args:
        points: how many, a divisor of the number of timesteps.

    Returns:
        The timesteps.
    """
    return np.arange(0, TIMESTEPS, TIMESTEPS // points)


@partial(jax.jit, static_argnames=("points", "hidden"))
def affinities(
    vectors: Float[Array, "networks size"], x: Float[Array, "examples features"], points: int, hidden: int
) -> Float[Array, "networks points points"]:
    """The cosines of the gradients at the timesteps of a grid, on all examples with the same noise.

    Args:
        vectors: each network's parameters.
        x: the examples.
        points: of the grid.
        hidden: width of the networks.

    Returns:
        For each network.
    """
    denoise = denoiser(x.shape[1], hidden)

    def loss_fn(params, x0: Array, t: Array, key: jax.Array) -> Array:
        noise = jax.random.normal(key, x0.shape)
        every = jnp.full(len(x0), t)
        return denoising_loss(partial(denoise, params), x0, every, noise, SCHEDULE.alphas_cumprod)

    def of_network(vector: Array) -> Array:
        params = unflat(vector, x.shape[1], hidden)
        return task_affinity_of(loss_fn, params, grid(points), x[None], jax.random.key(3))

    return jax.lax.map(of_network, vectors)


def distances(points: int) -> Int[np.ndarray, "points points"]:
    """How many timesteps apart the points of a grid are."""
    t = grid(points)
    return np.abs(t[:, None] - t)


def by_distance(affinity: Float[np.ndarray, "points points"]) -> tuple[np.ndarray, np.ndarray]:
    """The mean affinity at each distance.

    Args:
        affinity: on a grid.

    Returns:
        Distances in timesteps, from 0, and the means.
    """
    apart = distances(len(affinity))
    return apart[0], np.array([affinity[apart == distance].mean() for distance in apart[0]])


def by_bin(affinity: Float[np.ndarray, "points points"]) -> Float[np.ndarray, " bins"]:
    """The mean affinity in bins of distance, (0, 200], (200, 400] and so on.

    Args:
        affinity: on a grid.

    Returns:
        The means.
    """
    apart = distances(len(affinity))
    bins = range(0, TIMESTEPS, BIN)
    return np.array([affinity[(apart > low) & (apart <= low + BIN)].mean() for low in bins])


def rank_correlation(affinity: Float[np.ndarray, "points points"]) -> float:
    """Spearman's correlation of distance and affinity over all pairs.

    Args:
        affinity: on a grid.

    Returns:
        From -1 to 1.
    """
    from scipy.stats import spearmanr

    pairs = np.triu_indices(len(affinity), 1)
    return float(spearmanr(distances(len(affinity))[pairs], affinity[pairs]).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def boundaries(
    clustering: Clustering, clusters: int, affinity: Float[np.ndarray, "points points"]
) -> tuple[int, ...]:
    """The clusters of timesteps.

    Args:
        clustering: by what.
        clusters: how many.
        affinity: for "gradient"; its grid's points are what is clustered.

    Returns:
        ``0 = b_0 < b_1 < ... < b_k = timesteps``.
    """
    if clustering == "timestep":
        found: Sequence[int] = np.asarray(timestep_intervals(TIMESTEPS, clusters)).tolist()
    elif clustering == "SNR":
        found = interval_clustering(interval_cost("snr", SCHEDULE.log_snr), clusters)[0].tolist()
    else:
        bounds, _ = interval_clustering(interval_cost("gradient", affinity), clusters)
        found = (np.asarray(bounds) * (TIMESTEPS // len(affinity))).tolist()
    return tuple(int(bound) for bound in found)
