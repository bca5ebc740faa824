"""A paper's claim and its verdict: a measurement over seeds, an interval around it, a criterion.

A mean gets Student's t interval. A median gets the exact order-statistic interval: for independent
draws from any continuous distribution, ``[x_(k), x_(n+1-k)]`` covers the median with probability
``1 - 2 P(Binomial(n, 1/2) < k)``, and the narrowest such interval with at least 95 % is taken.
Source: H. A. David and H. N. Nagaraja, "Order Statistics", 3rd edition, Section 7.1.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95

Verdict = Literal["holds", "does not hold", "undecided"]


@dataclass(frozen=True)
class AtLeast:
    """The estimate is at least ``threshold``."""

    threshold: float

    def __post_init__(self) -> None:
        _require_finite("AtLeast.threshold", self.threshold)

    def met_throughout(self, low: float, high: float) -> bool:
        """Whether every point of ``[low, high]`` meets the criterion."""
        return self.threshold <= low <= high

    def met_nowhere(self, low: float, high: float) -> bool:
        """Whether no point of ``[low, high]`` meets the criterion."""
        return low <= high < self.threshold

    def __str__(self) -> str:
        return f"at least {self.threshold:g}"


@dataclass(frozen=True)
class AtMost:
    """The estimate is at most ``threshold``."""

    threshold: float

    def __post_init__(self) -> None:
        _require_finite("AtMost.threshold", self.threshold)

    def met_throughout(self, low: float, high: float) -> bool:
        """Whether every point of ``[low, high]`` meets the criterion."""
        return low <= high <= self.threshold

    def met_nowhere(self, low: float, high: float) -> bool:
        """Whether no point of ``[low, high]`` meets the criterion."""
        return self.threshold < low <= high

    def __str__(self) -> str:
        return f"at most {self.threshold:g}"


@dataclass(frozen=True)
class Within:
    """The estimate lies in ``[low, high]``, ends included."""

    low: float
    high: float

    def __post_init__(self) -> None:
        _require_finite("Within.low", self.low)
        _require_finite("Within.high", self.high)
        if self.low > self.high:
            raise ValueError(f"Within.low: expected at most Within.high = {self.high:g}, got {self.low:g}")

    def met_throughout(self, low: float, high: float) -> bool:
        """Whether every point of ``[low, high]`` meets the criterion."""
        return self.low <= low <= high <= self.high

    def met_nowhere(self, low: float, high: float) -> bool:
        """Whether no point of ``[low, high]`` meets the criterion."""
        return high < self.low or low > self.high

    def __str__(self) -> str:
        return f"from {self.low:g} to {self.high:g}"


Criterion = AtLeast | AtMost | Within


@dataclass(frozen=True)
class Judgement:
    """What a run says of a claim."""

    claim: "Claim"
    values: tuple[float, ...]
    """One measurement per seed."""
    estimate: float
    """Their mean or median."""
    low: float
    """Lower end of the interval; minus infinity for one seed."""
    high: float
    """Upper end of the interval; infinity for one seed."""
    confidence: float
    """Coverage of the interval: 0.95 for a mean, the exact one for a median, 0 for one seed."""
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """A sentence from a paper and the measurement that decides it."""

    name: str
    """In kebab-case, unique in its experiment."""
    sentence: str
    """What the paper says, in our words."""
    source: str
    """Where it says so: "arXiv:2404.05868, Section 4, Figure 4"."""
    paper: str
    """The paper's own figure, or "qualitative only"."""
    measure: str
    """How it is measured here, with units."""
    criterion: Criterion
    """What the measurement must meet for the claim to hold."""
    statistic: Literal["mean", "median"] = "mean"
    """What is estimated from the seeds."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.name):
            raise ValueError(f"Claim.name: expected kebab-case as in 'slow-divergence', got {self.name!r}")
        if self.statistic not in ("mean", "median"):
            raise ValueError(
                f"claim {self.name!r}: statistic: expected 'mean' or 'median', got {self.statistic!r}"
            )

    def judge(self, values: ArrayLike) -> Judgement:
        """The verdict from one measurement per seed.

        The claim holds if the whole interval meets the criterion, does not hold if none of it does,
        and is undecided otherwise, also where the seeds are too few for an interval of 95 %.

        Args:
            values: one number per seed, ``[seeds]``.

        Returns:
            The estimate, its interval and the verdict.

        Raises:
            ValueError: values are not a non-empty vector of finite numbers.
        """
        try:
            measured = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"claim {self.name!r}: values: expected numbers, got {values!r}") from error
        if measured.ndim != 1 or measured.size == 0:
            raise ValueError(
                f"claim {self.name!r}: values: expected one number per seed, shape [seeds] with at least "
                f"one seed, got shape {list(measured.shape)}"
            )
        if not np.isfinite(measured).all():
            seed = int(np.flatnonzero(~np.isfinite(measured))[0])
            raise ValueError(
                f"claim {self.name!r}: values: expected finite numbers, got {measured[seed]} at seed {seed}"
            )
        interval = mean_interval if self.statistic == "mean" else median_interval
        estimate, low, high, confidence = interval(measured)
        if confidence < CONFIDENCE:
            verdict: Verdict = "undecided"
        elif self.criterion.met_throughout(low, high):
            verdict = "holds"
        elif self.criterion.met_nowhere(low, high):
            verdict = "does not hold"
        else:
            verdict = "undecided"
        return Judgement(self, tuple(measured.tolist()), estimate, low, high, confidence, verdict)


def mean_interval(values: np.ndarray) -> tuple[float, float, float, float]:
    """The mean with Student's 95 % interval, ``mean ± t s / sqrt(n)``.

    Args:
        values: ``[seeds]``.

    Returns:
        Estimate, lower end, upper end, confidence. One value has no interval: the ends are infinite
        and the confidence is 0.

    Example:
        >>> import numpy as np
        >>> [round(x, 3) for x in mean_interval(np.array([1.0, 2.0, 3.0]))]
        [2.0, -0.484, 4.484, 0.95]
    """
    from scipy.stats import t

    count, estimate = len(values), float(np.mean(values))
    if count == 1:
        return estimate, -math.inf, math.inf, 0.0
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1) * np.std(values, ddof=1) / math.sqrt(count))
    return estimate, estimate - half, estimate + half, CONFIDENCE


def median_interval(values: np.ndarray) -> tuple[float, float, float, float]:
    """The median with the narrowest order-statistic interval of at least 95 %.

    Below six values no such interval exists; then the range is returned with its real coverage,
    ``1 - 2^(1-n)``.

    Args:
        values: ``[seeds]``.

    Returns:
        Estimate, lower end, upper end, exact coverage. One value has no interval: the ends are
        infinite and the confidence is 0.

    Example:
        >>> import numpy as np
        >>> [round(x, 5) for x in median_interval(np.arange(6.0))]
        [2.5, 0.0, 5.0, 0.96875]
    """
    from scipy.stats import binom

    count, estimate = len(values), float(np.median(values))
    if count == 1:
        return estimate, -math.inf, math.inf, 0.0
    # The largest k with P(Binomial(n, 1/2) < k) <= 0.025.
    rank = max(1, int(binom.ppf((1 - CONFIDENCE) / 2, count, 0.5)))
    coverage = float(1 - 2 * binom.cdf(rank - 1, count, 0.5))
    ordered = np.sort(values)
    return estimate, float(ordered[rank - 1]), float(ordered[count - rank]), coverage


def _require_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
