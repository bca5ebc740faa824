"""What TOFU says of a model, from the average losses of its answers.

Maini et al., arXiv:2401.06121, Section 2.2. Its model utility has nine numbers; two of them can be measured
here, the probability and the truth ratio on the retain set. Their harmonic mean is called *small utility*.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.tofu.training import ANSWER, PARAPHRASED, PERTURBED
from jaxneg.unlearning import TofuLog, tofu_report


class Scores(NamedTuple):
    """A model's scores."""

    log_quality: float
    """log10 of the forget quality."""
    utility: float
    """Small utility."""
    probability: float
    """Mean probability of the answers, retain set."""
    ratio: float
    """Mean truth ratio score, retain set."""
    forget_nll: float
    """Nats per token of the answers, forget set."""


def forget_ratios(
    losses: Float[np.ndarray, "questions answers"], forget: int
) -> Float[np.ndarray, " forget"]:
    """Truth ratios on the forget set.

    Args:
        losses: average losses, from `Lab.losses`.
        forget: how many of the questions are the forget set's; they come first.

    Returns:
        R for each of its questions.

    Example:
        >>> forget_ratios(np.array([[1.0, 2.0, 2.0], [1.0, 2.0, 3.0]]), 1).tolist()
        [1.0]
    """
    ratios = tofu_report({"forget": _log(losses[:forget])}).forget_truth_ratio
    assert ratios is not None
    return ratios


def score(
    losses: Float[np.ndarray, "questions answers"],
    lengths: np.ndarray,
    forget: int,
    retrained: Float[np.ndarray, " forget"],
) -> Scores:
    """A model's scores.

    Args:
        losses: its average losses, from `Lab.losses`.
        lengths: tokens of each answer.
        forget: how many of the questions are the forget set's; they come first.
        retrained: truth ratios of the retrained model on the forget set.

    Returns:
        Forget quality, utility and what they are made of.
    """
    report = tofu_report({"forget": _log(losses[:forget]), "retain": _log(losses[forget:])}, retrained)
    assert report.forget_quality is not None
    assert report.model_utility is not None
    kept, count = report.scores["retain"], lengths[:forget, ANSWER]
    return Scores(
        log_quality=float(np.log10(report.forget_quality.p)),
        utility=report.model_utility,
        probability=kept["probability"],
        ratio=kept["truth_ratio"],
        forget_nll=float((losses[:forget, ANSWER] * count).sum() / count.sum()),
    )


def _log(losses: Float[np.ndarray, "questions answers"]) -> TofuLog:
    return TofuLog(losses[:, ANSWER], losses[:, PARAPHRASED], losses[:, PERTURBED])
