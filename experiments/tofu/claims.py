"""What the papers claim of unlearning TOFU's authors, as far as a small model can show it."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim
from experiments.tofu.metrics import Scores

CLAIMED = ("GA", "GA+RT", "NPO+RT")
"""The methods that the claims speak of."""

_QUALITY = (
    "log10 of the forget quality: p of the Kolmogorov-Smirnov test between truth ratios on the forget set,"
    " against the model that was retrained without it"
)
_UTILITY = "harmonic mean of probability and truth ratio score on the retain set"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="npo-rt-forgets-better-than-ga-rt",
        sentence="With a retain loss NPO ends far closer to the retrained model than gradient ascent.",
        source="arXiv:2404.05868, Section 5",
        paper="Llama-2-7B, Forget10, as open-unlearning reproduces it: 0.42 against 1.8e-229",
        measure=f"NPO+RT's minus GA+RT's {_QUALITY}; last step",
        criterion=AtLeast(8.0),
        statistic="median",
    ),
    Claim(
        name="npo-rt-keeps-more-than-ga-rt",
        sentence="NPO with a retain loss keeps more of the model's utility than gradient ascent with one.",
        source="arXiv:2404.05868, Section 5",
        paper="curves only; open-unlearning, Llama-2-7B, Forget10, finds it the other way: 0.54 against 0.58",
        measure=f"NPO+RT's minus GA+RT's {_UTILITY}; last step",
        criterion=AtLeast(0.05),
        statistic="median",
    ),
    Claim(
        name="ga-collapses",
        sentence="Gradient ascent alone destroys the model: catastrophic collapse.",
        source="arXiv:2404.05868, Sections 3 and 5",
        paper="Llama-2-7B, Forget10, as open-unlearning reproduces it: utility 0",
        measure=f"GA: {_UTILITY}; last step",
        criterion=AtMost(0.05),
        statistic="median",
    ),
    Claim(
        name="before-unlearning-told-apart",
        sentence="Before unlearning the model is easily told from the retrained one.",
        source="arXiv:2401.06121, Section 2.2.2",
        paper="Llama-2-7B, Forget10, as open-unlearning reproduces it: 4.35e-25",
        measure=f"model before unlearning: {_QUALITY}",
        criterion=AtMost(-4.0),
        statistic="median",
    ),
)


def measurements(before: list[Scores], after: Mapping[str, list[list[Scores]]]) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        before: of the model before unlearning, one for each seed.
        after: of each method, for each seed one for each evaluation.

    Returns:
        By the claims' names.
    """
    quality = {name: np.array([seed[-1].log_quality for seed in after[name]]) for name in CLAIMED}
    utility = {name: np.array([seed[-1].utility for seed in after[name]]) for name in CLAIMED}
    return {
        "npo-rt-forgets-better-than-ga-rt": quality["NPO+RT"] - quality["GA+RT"],
        "npo-rt-keeps-more-than-ga-rt": utility["NPO+RT"] - utility["GA+RT"],
        "ga-collapses": utility["GA"],
        "before-unlearning-told-apart": np.array([scores.log_quality for scores in before]),
    }
