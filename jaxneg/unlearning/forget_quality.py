"""Forget quality: can the unlearned model be told from one that never saw the data?

Implements the Kolmogorov-Smirnov test of Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs",
arXiv:2401.06121, Section 2.2.2, in float64 on the host: p-values of 1e-200 are everyday here. The exact
distribution counts lattice paths (Hodges, "The significance probability of the Smirnov two-sample test",
1958); for samples beyond 10,000 the one-sample distribution stands in, as in scipy (Durbin's matrix:
Marsaglia, Tsang and Wang, "Evaluating Kolmogorov's distribution", 2003; tail: Smirnov's one-sided sum).
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike

_EXACT_UP_TO = 10_000


class ForgetQuality(NamedTuple):
    """A test's p-value and its statistic."""

    p: float
    """The forget quality: above 0.05 the two models cannot be told apart."""
    stat: float
    """The largest distance between the two empirical distributions, between 0 and 1."""


def forget_quality(tr_a: ArrayLike, tr_b: ArrayLike) -> ForgetQuality:
    """Two-sided two-sample Kolmogorov-Smirnov test between the truth ratios of two models.

    ``stat = max_x |F_a(x) - F_b(x)|``, p = the share of all orders of the pooled sample whose distance is at
    least as large. Exact up to 10,000 values in a sample, above that the one-sample distribution with ``n =
    round(a b / (a + b))``: the rule "auto" of ``scipy.stats.ks_2samp``.

    Args:
        tr_a: truth ratios of the unlearned model on the forget set (`truth_ratio`); R or 1/R, the result is
            the same.
        tr_b: those of the model retrained without the forget set; another number of them is fine.

    Returns:
        The p-value and the statistic. Runs on the host in float64, not under jit.

    Raises:
        ValueError: an empty sample, an array that is not one-dimensional, NaN in it.

    Source:
        arXiv:2401.06121, Section 2.2.2.

    Example:
        >>> forget_quality([1.0, 2.0], [3.0, 4.0, 5.0])
        ForgetQuality(p=0.2, stat=1.0)
    """
    a, b = _sample("tr_a", tr_a), _sample("tr_b", tr_b)
    n, m = len(a), len(b)
    pooled = np.concatenate([a, b])
    # In integers: the distance times n m, so that ties at the boundary stay ties.
    distance = int(
        np.abs(
            m * np.searchsorted(a, pooled, side="right") - n * np.searchsorted(b, pooled, side="right")
        ).max()
    )
    stat = distance / (n * m)
    if max(n, m) <= _EXACT_UP_TO:
        p = _two_sample_tail(n, m, distance)
    else:
        p = _one_sample_tail(round(n * m / (n + m)), stat)
    return ForgetQuality(min(max(p, 0.0), 1.0), stat)


def _sample(name: str, values: ArrayLike) -> np.ndarray:
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or sample.size == 0:
        raise ValueError(
            f"{name}: expected a one-dimensional array of at least one, got shape {sample.shape}"
        )
    if np.isnan(sample).any():
        raise ValueError(f"{name}: expected numbers, got NaN at {int(np.isnan(sample).argmax())}")
    return np.sort(sample)


def _two_sample_tail(n: int, m: int, distance: int) -> float:
    """Share of the lattice paths from (0, 0) to (n, m) that meet ``|i m - j n| >= distance``.

    ``u(i, j)``, the share among the paths to (i, j), is 1 on the boundary and beyond, and else the mean of
    its two predecessors with weights i and j: sums of positive numbers only, so that nothing cancels.
    """
    if distance == 0:
        return 1.0
    share = np.zeros(n + 1)
    i = np.arange(n + 1)
    for k in range(1, n + m + 1):
        lowest, highest = max(0, k - m), min(n, k)
        row = slice(lowest, highest + 1)
        # share[i] still holds u(i, j - 1) of the diagonal before, share[i - 1] holds u(i - 1, j).
        left = share[lowest - 1 : highest] if lowest else np.concatenate([[0.0], share[:highest]])
        mean = (i[row] * left + (k - i[row]) * share[row]) / k
        outside = np.abs(i[row] * m - (k - i[row]) * n) >= distance
        share[row] = np.where(outside, 1.0, mean)
    return float(share[n])


def _one_sample_tail(n: int, distance: float) -> float:
    """P(D_n >= distance) of the one-sample statistic."""
    if distance >= 1:
        return 0.0
    if n * distance <= 0.5:
        return 1.0
    if n * distance**2 >= 4 or distance >= 0.5:
        return 2 * _one_sided_tail(n, distance)
    return 1 - _durbin(n, distance)


def _one_sided_tail(n: int, distance: float) -> float:
    """Smirnov's ``d sum_j C(n, j) (d + j/n)^(j-1) (1 - d - j/n)^(n-j)``, in logarithms."""
    j = np.arange(int(n * (1 - distance)) + 1)
    remains = 1 - distance - j / n
    j, remains = j[remains > 0], remains[remains > 0]
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    log_choose = log_factorial[n] - log_factorial[j] - log_factorial[n - j]
    terms = log_choose + (j - 1) * np.log(distance + j / n) + (n - j) * np.log(remains)
    return float(distance * np.exp(terms).sum())


def _durbin(n: int, distance: float) -> float:
    """P(D_n < distance) as ``n!/n^n`` times an entry of the n-th power of Durbin's matrix."""
    k = math.ceil(n * distance)
    h, size = k - n * distance, 2 * k - 1
    reciprocal = np.concatenate([[1.0], np.cumprod(1 / np.arange(1, size + 1))])
    order = np.arange(size)
    steps = order[:, None] - order[None, :] + 1
    matrix = np.where(steps >= 0, reciprocal[np.maximum(steps, 0)], 0.0)
    edge = (1 - h ** np.arange(1, size + 1)) * reciprocal[1:]
    edge[-1] = (1 - 2 * h**size + max(2 * h - 1, 0) ** size) * reciprocal[size]
    matrix[:, 0], matrix[-1] = edge, edge[::-1]
    # Logarithms of the scales beside the matrices: their powers leave the range of float64.
    power, log_power, log_matrix = np.eye(size), 0.0, 0.0
    exponent = n
    while exponent:
        if exponent % 2:
            power, log_power = power @ matrix, log_power + log_matrix
            power, log_power = _rescaled(power, log_power)
        matrix, log_matrix = _rescaled(matrix @ matrix, 2 * log_matrix)
        exponent //= 2
    log_factorial = math.lgamma(n + 1) - n * math.log(n)
    return float(power[k - 1, k - 1] * math.exp(log_power + log_factorial))


def _rescaled(matrix: np.ndarray, log_scale: float) -> tuple[np.ndarray, float]:
    largest = matrix.max()
    return matrix / largest, log_scale + math.log(largest)
