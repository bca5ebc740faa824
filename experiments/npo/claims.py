"""What the paper claims of its synthetic experiment and of the rates of divergence."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim, Within

Curves = Mapping[str, np.ndarray]
"""By method ``[seeds, evaluations, 2]``: distance on forget and on retain points, nats."""

OFFICIAL: dict[float, dict[str, tuple[float, float]]] = {
    1.0: {
        "GA": (0.047, 1.35),
        "GA+RT": (0.046, 0.240),
        "IDK+RT": (0.87, 0.018),
        "NPO": (0.0034, 0.159),
        "NPO+RT": (0.0031, 0.0158),
        "NPO+KL": (0.0034, 0.0168),
        "DPO": (0.024, 1.23),
        "DPO+RT": (0.011, 0.028),
        "KTO": (0.013, 0.100),
    },
    0.0: {
        "GA": (0.198, 0.199),
        "GA+RT": (0.142, 0.143),
        "IDK+RT": (0.069, 0.068),
        "NPO": (0.0355, 0.0357),
        "NPO+RT": (0.0153, 0.0158),
        "DPO+RT": (0.0238, 0.0251),
    },
}
"""Forget and retain distance after 2000 steps, from a rerun of the paper's code on its five seeds: medians
for alpha = 1, means for alpha = 0. The paper shows curves only."""

ORDER = ("NPO+RT", "DPO+RT", "NPO", "IDK+RT", "GA+RT", "GA")
"""From the closest to the retrained model to the farthest, where the populations overlap (alpha = 0)."""

NOT_IN_TABLE_1 = ("KTO",)
"""Methods whose hyperparameters are not the paper's."""

_FIGURE = "arXiv:2404.05868, Section 4, Figure 4"
_DISTANCE = "mean KL(retrained || model) on 1000 fresh points, nats, last step"


def _ratio(above: float, below: float) -> str:
    """What the paper's code gives where the paper shows curves."""
    return f"curves only; its code: {above:g} / {below:g} = {above / below:.2g}"


def _order_claim(better: str, worse: str) -> Claim:
    close, far = OFFICIAL[0.0][better], OFFICIAL[0.0][worse]
    return Claim(
        name=f"overlap-{better}-beats-{worse}".lower().replace("+", "-"),
        sentence=f"Where the populations overlap, {better} ends closer to the retrained model than {worse}.",
        source=_FIGURE,
        paper=_ratio(far[0], close[0]),
        measure=(
            f"alpha = 0: distance of {worse} over that of {better}, for forget and for retain points,"
            f" the smaller of the two ({_DISTANCE})"
        ),
        criterion=AtLeast(1.0),
        statistic="median",
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="all-but-idk-forget",
        sentence="In 1200 steps every method but IDK+RT comes close to the retrained model on forget data.",
        source=_FIGURE,
        paper="below 0.005",
        measure=(
            "alpha = 1: least forget distance up to step 1200, of the worst method (without KTO, for which"
            " Table 1 has no hyperparameters), nats"
        ),
        criterion=AtMost(0.005),
        statistic="median",
    ),
    Claim(
        name="ga-destroys-the-rest",
        sentence="Gradient ascent alone drives the model far from the retrained one on the retain data.",
        source=_FIGURE,
        paper=_ratio(OFFICIAL[1.0]["GA"][1], OFFICIAL[1.0]["GA+RT"][1]),
        measure=f"alpha = 1: retain distance of GA over that of GA+RT ({_DISTANCE})",
        criterion=AtLeast(4.0),
        statistic="median",
    ),
    Claim(
        name="retain-loss-does-not-save-ga",
        sentence="With a retain loss gradient ascent still diverges on the retain data, and NPO does not.",
        source=_FIGURE,
        paper=_ratio(OFFICIAL[1.0]["GA+RT"][1], OFFICIAL[1.0]["NPO+RT"][1]),
        measure=f"alpha = 1: retain distance of GA+RT over that of NPO+RT ({_DISTANCE})",
        criterion=AtLeast(5.0),
        statistic="median",
    ),
    Claim(
        name="npo-rt-keeps-the-rest",
        sentence="The retain distance of NPO+RT stays flat.",
        source=_FIGURE,
        paper=_ratio(0.0159, 0.016),
        measure="alpha = 1: retain distance of NPO+RT at the last step over that at the first",
        criterion=Within(0.75, 1.25),
        statistic="median",
    ),
    Claim(
        name="npo-rt-forgets",
        sentence="NPO+RT forgets: on the forget data it ends close to the retrained model.",
        source=_FIGURE,
        paper="curves only; its code: 0.0031, from 1.61",
        measure=f"alpha = 1: forget distance of NPO+RT ({_DISTANCE})",
        criterion=AtMost(0.01),
        statistic="median",
    ),
    *(_order_claim(better, worse) for better, worse in pairwise(ORDER)),
    Claim(
        name="npo-becomes-ga",
        sentence="As beta goes to 0, NPO becomes gradient ascent.",
        source="arXiv:2404.05868, Proposition 1",
        paper="0 in the limit",
        measure=(
            "alpha = 1, learning rate 5e-4: greatest relative difference between NPO at the least beta of"
            " the sweep (0.01) and GA, in forget or retain distance, over the first 500 steps"
        ),
        criterion=AtMost(0.02),
        statistic="median",
    ),
    Claim(
        name="ga-diverges-linearly",
        sentence="Gradient ascent diverges linearly in the number of steps.",
        source="arXiv:2404.05868, Theorem 2",
        paper="1",
        measure=(
            "logistic regression with 20 points in 400 dimensions: slope of log ||theta_t - theta_0||"
            " against log t, second half of the steps"
        ),
        criterion=Within(0.98, 1.03),
    ),
    Claim(
        name="npo-diverges-logarithmically",
        sentence="NPO diverges logarithmically in the number of steps, exponentially slower than that.",
        source="arXiv:2404.05868, Theorem 2 and Lemma 4",
        paper="1",
        measure=(
            "the same regressions: slope of beta ||theta_t - theta_0|| / sqrt(n_f) against log t, second"
            " half of the steps"
        ),
        criterion=Within(0.95, 1.10),
    ),
)


def measurements(
    steps: np.ndarray,
    curves: Mapping[float, Curves],
    sweep_steps: np.ndarray,
    ascent: np.ndarray,
    limit: np.ndarray,
    rates: np.ndarray,
) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        steps: at which the methods were evaluated.
        curves: the methods' distances, by alpha.
        sweep_steps: at which the sweep was evaluated.
        ascent: distances of gradient ascent in the sweep, ``[seeds, evaluations, 2]``.
        limit: distances of NPO with the sweep's least beta.
        rates: ``[seeds, 2]``, what `divergence.slopes` says of each instance.

    Returns:
        By the claims' names.
    """
    apart, overlap = curves[1.0], curves[0.0]
    end = {name: curve[:, -1] for name, curve in apart.items()}
    forgotten = [
        curve[:, steps <= 1200, 0].min(1)
        for name, curve in apart.items()
        if name not in ("IDK+RT", *NOT_IN_TABLE_1)
    ]
    early = (sweep_steps > 0) & (sweep_steps <= 500)
    return {
        "all-but-idk-forget": np.max(forgotten, axis=0),
        "ga-destroys-the-rest": end["GA"][:, 1] / end["GA+RT"][:, 1],
        "retain-loss-does-not-save-ga": end["GA+RT"][:, 1] / end["NPO+RT"][:, 1],
        "npo-rt-keeps-the-rest": end["NPO+RT"][:, 1] / apart["NPO+RT"][:, 0, 1],
        "npo-rt-forgets": end["NPO+RT"][:, 0],
        **{
            _order_claim(better, worse).name: (overlap[worse][:, -1] / overlap[better][:, -1]).min(-1)
            for better, worse in pairwise(ORDER)
        },
        "npo-becomes-ga": np.abs(limit[:, early] / ascent[:, early] - 1).max((1, 2)),
        "ga-diverges-linearly": rates[:, 0],
        "npo-diverges-logarithmically": rates[:, 1],
    }
