"""What the paper claims, and how it is measured here."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from experiments.ant.affinity import BIN, by_bin, rank_correlation
from experiments.ant.quality import Quality
from experiments.ant.training import MIN_SNR, NASH, PCGRAD, STRATIFIED, UW, VANILLA, Arm, Clustering
from experiments.claims import AtLeast, AtMost, Claim

PAPER = "arXiv:2306.00354"
CLUSTERINGS: tuple[Clustering, ...] = ("timestep", "SNR", "gradient")
FFHQ: dict[Arm, float] = {
    VANILLA: 10.56,
    PCGRAD: 9.599,
    NASH: 9.400,
    UW: 9.386,
    Arm("pcgrad", "SNR"): 9.715,
    Arm("nash", "SNR"): 10.33,
    Arm("uw", "SNR"): 9.734,
    Arm("pcgrad", "gradient"): 9.189,
    Arm("nash", "gradient"): 9.294,
    Arm("uw", "gradient"): 9.439,
}
"""The paper's FID of a latent diffusion model on FFHQ 256."""
IMAGENET: dict[Arm, float] = {VANILLA: 12.59, MIN_SNR: 9.58, UW: 6.17}
"""The paper's FID of DiT-L/2 on ImageNet 256 after 400,000 steps."""
SPEED: dict[Arm, float] = {VANILLA: 2.108, PCGRAD: 1.523, NASH: 2.011, UW: 2.103}
"""The paper's training steps a second, latent diffusion on FFHQ."""
GAPS = {"ADM": (4.6, 0.2, -1.7, -5.9, -7.6), "LDM": (-0.09, 0.06, -0.73, -0.68, 0.23)}
"""The paper's transfer gaps of vanilla training in five intervals, FID, read off its chart."""

_QUALITY = f"{PAPER}, the table of FFHQ and CelebA-HQ"
_IMAGENET = f"{PAPER}, the table of ImageNet"
_GAPS = f"{PAPER}, Section 3, the chart of negative transfer gaps"
_AFFINITY = f"{PAPER}, Section 3, the map of task affinity scores"
_FD = "Fréchet distance of 2,000 samples to the digits in a classifier's features, mean of two draws"


def _ratio(table: Mapping[Arm, float], better: Arm, worse: Arm, on: str) -> str:
    below, above = table[better], table[worse]
    return f"{on}: FID {below:g} / {above:g} = {below / above:.2f}"


def _clustering_claim(clustering: Clustering) -> Claim:
    best = min((Arm("uw", clustering), Arm("nash", clustering)), key=lambda arm: FFHQ[arm])
    return Claim(
        f"{clustering}-clusters-beat-vanilla".lower(),
        f"With clusters by {clustering}, multi-task training beats vanilla training.",
        _QUALITY,
        _ratio(FFHQ, best, VANILLA, f"LDM on FFHQ, {best.name}"),
        f"The lower of UW's and Nash's over vanilla's, with clusters by {clustering} ({_FD}).",
        AtMost(1.0),
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "affinity-falls-with-distance",
        "Gradients of two denoising tasks agree less, the further apart their noise levels are.",
        _AFFINITY,
        "from 1 on the diagonal to about 0 between the ends",
        f"The largest rise of the mean affinity from one bin of |Δt|, {BIN} timesteps wide, to the next;"
        " vanilla training, mean of three checkpoints.",
        AtMost(0.0),
    ),
    Claim(
        "affinity-ranks-by-distance",
        "Nearness in noise decides which tasks are akin.",
        _AFFINITY,
        "qualitative only",
        "Spearman's correlation of |Δt| and affinity over all pairs; as above.",
        AtMost(-0.6),
    ),
    Claim(
        "low-noise-does-not-suffer",
        "Not low but high noise suffers: the gap is lower in the last interval than in the first.",
        _GAPS,
        f"{GAPS['ADM'][-1] - GAPS['ADM'][0]:+.1f} (ADM), {GAPS['LDM'][-1] - GAPS['LDM'][0]:+.2f} (LDM)",
        f"Gap of vanilla training in the last interval minus the first ({_FD}).",
        AtMost(0.0),
    ),
    Claim(
        "high-noise-suffers",
        "Some noise levels are learnt worse together than alone.",
        _GAPS,
        f"{GAPS['ADM'][-1]:+.1f} (ADM), {GAPS['LDM'][-1]:+.2f} (LDM) in the last of five intervals",
        f"Transfer gap of vanilla training in the last interval: a specialist there minus none ({_FD}).",
        AtMost(0.0),
    ),
    Claim(
        "uw-ends-negative-transfer",
        "Multi-task training raises the gap where it is negative.",
        _GAPS,
        "qualitative only",
        f"Transfer gap in the last interval, UW minus vanilla ({_FD}).",
        AtLeast(0.0),
    ),
    Claim(
        "uw-beats-vanilla-clearly",
        "ANT with uncertainty weighting gives far better samples than vanilla training.",
        _IMAGENET,
        _ratio(IMAGENET, UW, VANILLA, "DiT-L/2 on ImageNet")
        + f"; LDM on FFHQ {FFHQ[UW] / FFHQ[VANILLA]:.2f}",
        f"UW over vanilla ({_FD}).",
        AtMost(0.75),
    ),
    Claim(
        "uw-beats-min-snr",
        "It gives better samples than weighting by Min-SNR.",
        _IMAGENET,
        _ratio(IMAGENET, UW, MIN_SNR, "DiT-L/2 on ImageNet"),
        f"UW over Min-SNR ({_FD}).",
        AtMost(1.0),
    ),
    Claim(
        "min-snr-beats-vanilla",
        "Weighting by Min-SNR gives better samples than vanilla training.",
        _IMAGENET,
        _ratio(IMAGENET, MIN_SNR, VANILLA, "DiT-L/2 on ImageNet"),
        f"Min-SNR over vanilla ({_FD}).",
        AtMost(1.0),
    ),
    Claim(
        "nash-beats-vanilla",
        "ANT with Nash-MTL gives better samples than vanilla training.",
        _QUALITY,
        _ratio(FFHQ, NASH, VANILLA, "LDM on FFHQ"),
        f"Nash over vanilla ({_FD}).",
        AtMost(1.0),
    ),
    Claim(
        "pcgrad-beats-vanilla",
        "ANT with PCGrad gives better samples than vanilla training.",
        _QUALITY,
        _ratio(FFHQ, PCGRAD, VANILLA, "LDM on FFHQ"),
        f"PCGrad over vanilla ({_FD}).",
        AtMost(1.0),
    ),
    *(_clustering_claim(clustering) for clustering in CLUSTERINGS),
    Claim(
        "uw-converges-faster",
        "ANT reaches a quality in fewer steps.",
        f"{PAPER}, the curves of convergence",
        "DiT-S at 800,000 steps: FID about 65 vanilla, 38 to 41 with UW",
        "UW after two thirds of the steps over the lower of vanilla and stratified after all of them"
        f" ({_FD}).",
        AtMost(1.0),
    ),
    Claim(
        "uw-costs-nothing",
        "Uncertainty weighting takes no time in training.",
        f"{PAPER}, the table of memory and speed",
        f"{SPEED[VANILLA] / SPEED[UW]:.3f} ({SPEED[VANILLA]:g} against {SPEED[UW]:g} steps/s, LDM on FFHQ)",
        "Time of a step of UW over that of vanilla just before it, medians; a network 256 wide, batch 250.",
        AtMost(1.02),
    ),
)


class Found(NamedTuple):
    """What a run measured."""

    affinity: Float[np.ndarray, "seeds points points"]
    quality: Mapping[Arm, Quality]
    """``[seeds, checkpoints]``."""
    gaps: Mapping[Arm, Float[np.ndarray, "seeds intervals"]]
    """Of Fréchet distances."""
    cost: Float[np.ndarray, " repeats"]
    """Time of a step of UW over vanilla's."""


def measurements(found: Found, last: int) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        found: what was measured.
        last: the checkpoint at which methods are compared.

    Returns:
        Values by the claim's name.
    """

    def fd(arm: Arm) -> np.ndarray:
        return found.quality[arm].fd[:, last]

    def over(better: Arm, worse: Arm) -> np.ndarray:
        return fd(better) / fd(worse)

    longest = np.minimum(*(found.quality[arm].fd[:, -1] for arm in (VANILLA, STRATIFIED)))
    measured: dict[str, ArrayLike] = {
        "affinity-falls-with-distance": [np.diff(by_bin(affinity)).max() for affinity in found.affinity],
        "affinity-ranks-by-distance": [rank_correlation(affinity) for affinity in found.affinity],
        "low-noise-does-not-suffer": found.gaps[VANILLA][:, -1] - found.gaps[VANILLA][:, 0],
        "high-noise-suffers": found.gaps[VANILLA][:, -1],
        "uw-ends-negative-transfer": found.gaps[UW][:, -1] - found.gaps[VANILLA][:, -1],
        "uw-beats-vanilla-clearly": over(UW, VANILLA),
        "uw-beats-min-snr": over(UW, MIN_SNR),
        "min-snr-beats-vanilla": over(MIN_SNR, VANILLA),
        "nash-beats-vanilla": over(NASH, VANILLA),
        "pcgrad-beats-vanilla": over(PCGRAD, VANILLA),
    }
    for clustering in CLUSTERINGS:
        best = np.minimum(fd(Arm("uw", clustering)), fd(Arm("nash", clustering)))
        measured[f"{clustering}-clusters-beat-vanilla".lower()] = best / fd(VANILLA)
    return measured | {"uw-converges-faster": fd(UW) / longest, "uw-costs-nothing": found.cost}
