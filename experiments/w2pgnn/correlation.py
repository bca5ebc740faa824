"""Pearson correlations of scores with results, and how far they can be trusted."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's correlation along the first axis; 0 where one of both does not vary.

    Args:
        x: ``[n, ...]``.
        y: likewise.

    Returns:
        ``[...]``.

    Example:
        >>> float(pearson(np.array([1.0, 2, 3]), np.array([1.0, 2, 4])).round(3))
        0.982
    """
    x, y = x - x.mean(0), y - y.mean(0)
    norm = np.sqrt((x * x).sum(0) * (y * y).sum(0))
    return np.where(norm > 1e-12, (x * y).sum(0) / np.where(norm > 1e-12, norm, 1), 0.0)


def fisher_interval(r: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a correlation over n pairs by Fisher's transformation.

    ``tanh(artanh r -+ 1.96 / sqrt(n - 3))``. Selections share data sets, so that it is rather too narrow.

    Args:
        r: the correlation.
        n: pairs of values; with three or fewer the interval is all of -1 to 1.

    Returns:
        Lower and upper end.

    Example:
        >>> [round(end, 2) for end in fisher_interval(0.5, 15)]
        [-0.02, 0.81]
    """
    if n <= 3:
        return -1.0, 1.0
    z, half = math.atanh(min(max(r, -0.999999), 0.999999)), 1.959964 / math.sqrt(n - 3)
    return math.tanh(z - half), math.tanh(z + half)


def jackknife(values: np.ndarray, statistic: Callable[[np.ndarray], float]) -> np.ndarray:
    """Pseudo-values of a statistic of a mean over seeds, one a seed (Tukey 1958).

    ``n s(mean of all) - (n - 1) s(mean without seed i)``: their mean is the statistic freed of its
    first-order bias, their spread that of the statistic.

    Args:
        values: results by seed on the first axis.
        statistic: a function from a mean over seeds to a number.

    Returns:
        ``[seeds]``; with one seed the statistic itself.

    Example:
        >>> jackknife(np.array([1.0, 2.0, 6.0]), float).round(6).tolist()
        [1.0, 2.0, 6.0]
    """
    n = len(values)
    whole = statistic(values.mean(0))
    if n == 1:
        return np.array([whole])
    without = [statistic(np.delete(values, seed, 0).mean(0)) for seed in range(n)]
    return n * whole - (n - 1) * np.array(without)


def split_half(values: np.ndarray) -> np.ndarray:
    """How well one half of the seeds foretells the other: the mean correlation over all ways to halve them.

    Args:
        values: results, ``[seeds, selections, ...]``; of an odd number of seeds one is left out of each
        halving.

    Returns:
        ``[...]``; NaN with one seed.

    Example:
        >>> float(split_half(np.array([[1.0, 2.0, 3.0]] * 4)))
        1.0
    """
    seeds = range(len(values))
    half = len(values) // 2
    if half == 0:
        return np.full(values.shape[2:], np.nan)
    found = [
        pearson(values[list(first)].mean(0), values[list(second)].mean(0))
        for first in combinations(seeds, half)
        for second in combinations([seed for seed in seeds if seed not in first], half)
        if first < second
    ]
    return np.mean(found, axis=0)
