"""What the paper claims, as minutes on a CPU can test it, and the measurements."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from experiments.amcl.comparison import FIXED_HEADS, WIDE_HEAD, amcl_name, base_name
from experiments.amcl.controlled import COUNTS, METHODS
from experiments.claims import AtLeast, AtMost, Claim, Within

PAPER = "arXiv:2310.05615"
CLAIMED_TAU_MIN = 0.1
"""Lower bound of the AMCL that the claims are about, settled before any run; tables show the others."""
FEW, MANY = "a", "abcde"

Results = dict[str, dict[str, dict[str, np.ndarray]]]
"""By augmentation letters, arm, and measurement; the leading axis is the seeds'."""

_PROBE = "linear top-1 on the test images, augmentations a to e"
_VIEWS = "test images' views, augmentations a to e"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "amcl-improves-linear-accuracy",
        "AMCL improves the method that it is put on.",
        f"{PAPER}, the table of CIFAR-10, SimCLR with ResNet-18",
        "+2.3 points (89.9 to 92.2), 1000 epochs",
        f"{_PROBE}: AMCL with several heads minus the base method at its best temperature",
        AtLeast(0.01),
    ),
    Claim(
        "amcl-gain-grows-with-augmentations",
        "The more kinds of augmentation, the larger the gain.",
        f"{PAPER}, the ablation of augmentations",
        "about +1 point with one, +4.6 with five",
        "linear top-1, gain of the claim above with augmentations a to e minus that with a alone",
        AtLeast(0.0),
    ),
    Claim(
        "heads-beat-a-wide-head",
        "Several heads are better than one as large as all of them.",
        f"{PAPER}, the ablation of heads",
        "+1.6 to +2.5 points",
        f"{_PROBE}: fixed temperature, several heads minus one wide head",
        AtLeast(0.005),
    ),
    Claim(
        "one-adaptive-head-is-like-a-fixed-temperature",
        "With one head adaptive temperatures change little: the heads are the key.",
        f"{PAPER}, the ablation of heads",
        "about equal",
        f"{_PROBE}: AMCL with one head minus the base method at its best temperature",
        Within(-0.01, 0.01),
    ),
    Claim(
        "amcl-separates-similarities",
        "AMCL's similarities of positive and of negative pairs overlap less.",
        f"{PAPER}, Figure 1",
        "histograms only",
        f"{_VIEWS}: common area of the histograms, AMCL minus the base method at its best temperature",
        AtMost(0.0),
    ),
    Claim(
        "hard-positives-get-higher-temperatures",
        "Positives that look unlike get a high temperature, like ones a low one.",
        f"{PAPER}, Section 3",
        "qualitative only",
        f"{_VIEWS}: Spearman's correlation of the positives' temperature and similarity, AMCL",
        AtMost(-0.1),
    ),
    Claim(
        "advantage-grows-with-nuisances",
        "The more kinds of nuisance, the more one similarity fails to serve all pairs.",
        f"{PAPER}, the ablation of augmentations, on views with known nuisances",
        "qualitative only",
        f"controlled views, linear top-1: AMCL minus SimCLR with {COUNTS[-1]} kinds, less the same with one",
        AtLeast(0.0),
    ),
    Claim(
        "heads-carry-the-advantage",
        "Several heads carry most of the advantage.",
        f"{PAPER}, the ablation of heads, on views with known nuisances",
        "qualitative only",
        f"controlled views, linear top-1 with {COUNTS[-1]} kinds: several fixed heads minus SimCLR",
        AtLeast(0.0),
    ),
)


def best_temperature(results: dict[str, dict[str, np.ndarray]], temperatures: Sequence[float]) -> float:
    """The temperature at which the base method's mean linear accuracy over the seeds is highest."""
    return max(temperatures, key=lambda t: results[base_name(t)]["linear"].mean())


def measurements(
    results: Results, controlled: dict[str, np.ndarray], temperatures: Sequence[float], heads: int
) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        results: of all arms.
        controlled: of the controlled views.
        temperatures: of the base method.
        heads: AMCL's.

    Returns:
        Values by the claim's name.
    """
    base = {letters: of[base_name(best_temperature(of, temperatures))] for letters, of in results.items()}
    several = {letters: of[amcl_name(heads, CLAIMED_TAU_MIN)] for letters, of in results.items()}
    gain = {letters: several[letters]["linear"] - base[letters]["linear"] for letters in results}
    many = results[MANY]
    linear = dict(zip(METHODS, controlled["linear"], strict=True))
    advantage = linear["AMCL"] - linear["SimCLR"]
    return {
        "amcl-improves-linear-accuracy": gain[MANY],
        "amcl-gain-grows-with-augmentations": gain[MANY] - gain[FEW],
        "heads-beat-a-wide-head": many[FIXED_HEADS]["linear"] - many[WIDE_HEAD]["linear"],
        "one-adaptive-head-is-like-a-fixed-temperature": many[amcl_name(1, CLAIMED_TAU_MIN)]["linear"]
        - base[MANY]["linear"],
        "amcl-separates-similarities": several[MANY]["overlap"] - base[MANY]["overlap"],
        "hard-positives-get-higher-temperatures": several[MANY]["spearman"],
        "advantage-grows-with-nuisances": advantage[-1] - advantage[0],
        "heads-carry-the-advantage": linear["several fixed heads"][-1] - linear["SimCLR"][-1],
    }
