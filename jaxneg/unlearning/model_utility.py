"""Model utility: what unlearning left of the model, in one number.

Implements the aggregate of Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121,
Section 2.2.3.
"""

from collections.abc import Mapping

import numpy as np


def model_utility(numbers: Mapping[str, float]) -> float:
    """Harmonic mean of the numbers that unlearning should keep high.

    ``utility = K / sum_k 1/numbers[k]``, 0 if one of them is 0.

    Args:
        numbers: by name, each at least 0. TOFU's are nine: {probability, ROUGE-L recall, truth ratio score} x
            {retain, real authors, world facts}; the forget set's do not belong here.

    Returns:
        The harmonic mean, in float64.

    Raises:
        ValueError: no number, or one that is negative or not finite.

    Source:
        arXiv:2401.06121, Section 2.2.3.

    Example:
        >>> model_utility({"probability": 0.5, "truth ratio": 1.0}).__round__(4)
        0.6667
    """
    if not numbers:
        raise ValueError("numbers: expected at least one number, got none")
    for name, number in numbers.items():
        if not 0 <= float(number) < float("inf"):
            raise ValueError(f"numbers[{name!r}]: expected a finite number of at least 0, got {number}")
    values = np.array([float(number) for number in numbers.values()])
    return float(len(values) / np.sum(1 / values)) if values.all() else 0.0
