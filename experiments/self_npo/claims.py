"""What the paper claims of its negatives, and what is expected of them on a plane and on digits."""

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim
from experiments.self_npo.arms import CFG, EARLY, Arm, Results
from experiments.self_npo.cost import Costs
from experiments.self_npo.fine_tuning import Preference, SelfNPO

PAPER = "Self-NPO, arXiv:2505.11777"
GUIDANCES = (0.0, 0.5, 1.0, 2.0, 4.0)
"""The weights w_g of guidance at which all arms are sampled."""

INVERSE = Arm(SelfNPO(-5.0))
"""The settings of the released script for SDXL."""
INVERSE_FROM_NOISE = Arm(SelfNPO(-5.0, "noise"))
UNCONDITIONAL = Arm(SelfNPO(-1.0))
"""The settings of the released script for SD1.5."""
WEAKLY_INVERSE = Arm(SelfNPO(-2.0, "noise", 0.5))
PLAIN = Arm(SelfNPO(0.0, "noise", 0.5))
"""What the paper's text says: a teacher without guidance, and no data."""
SIMULATED = Arm(SelfNPO(-5.0, simulate=True))
NPO = {beta: Arm(Preference(True, beta)) for beta in (2.0, 10.0, 50.0)}
AUTOGUIDANCE = Arm(EARLY)
DPO, LONGER_DPO = Preference(False), Preference(False, lengthen=2)
DPO_NEGATIVES = {"base": None, "Self-NPO": INVERSE.negative, "Diffusion-NPO": NPO[10.0].negative}
DPO_ARMS = {
    (name, alpha): Arm(negative, DPO, alpha)
    for name, negative in DPO_NEGATIVES.items()
    for alpha in (0, 0.5, 1)
}
"""By the negative's own offset, and how much of the preferred network's it has too."""
HALF_INVERSE = Arm(SelfNPO(-5.0), beta=0.5)
LONGER_DPO_ARM = Arm(None, LONGER_DPO)
STRONG = Arm(SelfNPO(-1.0, learning_rate=3e-4))

OTHERS = tuple(w for w in GUIDANCES if w > 0)
_PLANE = "Plane"
_REWARD = "mean log p(x | class), nats, no sample below -50"
_DIGITS = "Digits"
_NO_FIGURE = "no figure for such data"
_SD15 = "SD1.5: PickScore 20.75 to 21.00, ImageReward 0.1064 to 0.2816"
_SDXL = "SDXL: PickScore 22.06 to 22.26, ImageReward 0.6246 to 0.6697"


def _prototype(found: str) -> str:
    return f"{_NO_FIGURE}; {found} in an independent prototype"


def _digit_claims(arm: Arm, slug: str, distance: str, frechet: str, wins: str) -> tuple[Claim, ...]:
    name = arm.name
    return (
        Claim(
            f"digits-{slug}-is-nearer",
            f"On digits {name} comes clearly nearer to real images than guidance by the base network.",
            f"{PAPER}, the tables of results",
            _prototype(distance),
            f"{_DIGITS}, w_g = 1: mean distance to the nearest held-out digit of the class, over that of CFG;"
            " at least 15 % lower.",
            AtMost(0.85),
        ),
        Claim(
            f"digits-{slug}-has-a-better-distribution",
            f"On digits the samples with {name} are closer to the real distribution, too.",
            f"{PAPER}, the tables of results",
            _prototype(frechet),
            f"{_DIGITS}, w_g = 1: Fréchet distance in a classifier's features, over that of CFG; at least 20"
            " % lower.",
            AtMost(0.8),
        ),
        Claim(
            f"digits-{slug}-wins",
            f"On digits nearly every sample is better with {name} than with CFG from the same noise.",
            f"{PAPER}, the win rates",
            _prototype(wins),
            f"{_DIGITS}, w_g = 1: share of the samples that are nearer to a held-out digit of the class.",
            AtLeast(0.85),
        ),
    )


def _on_every_scale(arm: Arm, slug: str) -> Claim:
    return Claim(
        f"digits-{slug}-improves-both",
        f"On digits {arm.name} improves nearness and distribution at every guidance of 1 and more.",
        f"{PAPER}, the tables of results",
        _prototype("all of them, on 3 of 3 seeds"),
        f"{_DIGITS}: share of the comparisons with CFG that are won, of both distances at w_g = 1, 2, 4.",
        AtLeast(1.0),
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "plane-self-npo-improves-everywhere",
        "Guided away from Self-NPO's network (w = -5), samples are better and fewer of them are outliers,"
        " whatever the guidance.",
        f"{PAPER}, the tables of results",
        f"{_SDXL}; all of them, on 5 of 5 seeds, in an independent prototype",
        f"{_PLANE}: share of the comparisons with CFG that are won, of the reward and of the outliers at"
        " w_g = 0.5, 1, 2, 4.",
        AtLeast(1.0),
    ),
    Claim(
        "plane-self-npo-gains",
        "The gain is large.",
        f"{PAPER}, the tables of results",
        _prototype("0.55 to 1.33"),
        f"{_PLANE}, w_g = 1: reward with Self-NPO (w = -5) minus that with CFG, from the same noise"
        f" ({_REWARD}).",
        AtLeast(0.5),
    ),
    Claim(
        "plane-released-sd15-settings-gain",
        "The settings that were released for SD1.5 (w = -1) improve samples too.",
        f"{PAPER}, Table of SD1.5",
        f"{_SD15}; +0.17, on 3 of 5 seeds, in an independent prototype",
        f"{_PLANE}, w_g = 1: reward with Self-NPO (w = -1) minus that with CFG ({_REWARD}).",
        AtLeast(0.0),
    ),
    *(
        Claim(
            f"plane-plain-self-npo-gains-at-{slug}",
            f"So does the method as the text has it, without data and with an unguided teacher, at w_g ="
            f" {guidance:g}.",
            f"{PAPER}, the method",
            _prototype(found),
            f"{_PLANE}, w_g = {guidance:g}: reward with Self-NPO (w = 0, from noise) minus that with CFG"
            f" ({_REWARD}).",
            AtLeast(0.0),
        )
        for guidance, slug, found in (
            (0.5, "half", "+0.07, on 4 of 5 seeds"),
            (1.0, "one", "+0.26, on 4 of 5 seeds"),
            (2.0, "two", "+1.21, on 5 of 5 seeds"),
        )
    ),
    Claim(
        "plane-diffusion-npo-gains",
        "Guided away from what is dispreferred, samples are better than with CFG.",
        "Diffusion-NPO, arXiv:2505.11245, the tables of results",
        "SDXL: ImageReward 1.032 to 1.047, PickScore 22.97 to 23.08",
        f"{_PLANE}: reward with Diffusion-NPO minus that with CFG, the least over β = 2, 10 and w_g = 0.5, 1,"
        f" 2 ({_REWARD}).",
        AtLeast(0.0),
    ),
    Claim(
        "plane-self-npo-needs-no-labels",
        "Self-NPO gains, without labels, about as much as Diffusion-NPO does with them.",
        f"{PAPER}, Table of SD1.5",
        "PickScore 21.00 against 21.26, ImageReward 0.2816 against 0.2028 (SD1.5)",
        f"{_PLANE}, w_g = 1: the lesser of Self-NPO's (w = -5) lead over Diffusion-NPO with β = 10 and its"
        f" distance below that with β = 2 ({_REWARD}); at least 0 where it lies between them.",
        AtLeast(0.0),
    ),
    Claim(
        "plane-self-npo-is-ahead-at-equal-diversity",
        "The gain is no mere change of scale: at the same diversity the samples are better.",
        f"{PAPER}, no such comparison",
        _prototype("0.28 against -0.82"),
        f"{_PLANE}: reward with Self-NPO (w = -5) at w_g = 0.5, minus that of CFG where its total variation,"
        f" interpolated between w_g = 0, 0.5, 1, 2, 4, is the same ({_REWARD}).",
        AtLeast(0.0),
    ),
    Claim(
        "plane-self-npo-costs-diversity",
        "At the same w_g samples are less diverse: the push is stronger.",
        f"{PAPER}, no such comparison",
        _prototype("0.40, 0.56, 0.77 against 0.29, 0.41, 0.64"),
        f"{_PLANE}: total variation with Self-NPO (w = -5) minus that with CFG, the least over w_g ="
        " 0.5, 1, 2.",
        AtLeast(0.0),
    ),
    Claim(
        "plane-self-npo-adds-to-dpo",
        "Self-NPO also improves a network that learnt the preference itself.",
        f"{PAPER}, Table of SDXL",
        "SDXL with Diffusion-DPO: PickScore 22.57 to 22.67, ImageReward 0.8624 to 0.8784",
        f"{_PLANE}, w_g = 1: reward of DPO (β = 10) with Self-NPO's offset (w = -5, a = 1) in its negative,"
        f" minus that with its own or the base network as the negative, whichever is better ({_REWARD}).",
        AtLeast(0.0),
    ),
    Claim(
        "plane-self-npo-harms-a-good-network",
        "With a well trained network and strong fine-tuning Self-NPO does harm.",
        f"{PAPER}, no such experiment; it claims an improvement of every model",
        _prototype("worse at w_g <= 2"),
        f"{_PLANE}, width 64, 3000 steps: reward with Self-NPO (w = -1, learning rate 3e-4, 600 steps)"
        f" minus that with CFG, the greatest over w_g = 0.5, 1, 2 ({_REWARD}).",
        AtMost(0.0),
    ),
    _on_every_scale(INVERSE, "inverse-teacher"),
    *_digit_claims(INVERSE, "inverse-teacher", "0.78", "0.73", "0.93"),
    _on_every_scale(WEAKLY_INVERSE, "weakly-inverse-teacher"),
    *_digit_claims(WEAKLY_INVERSE, "weakly-inverse-teacher", "0.81", "0.62", "0.94"),
    _on_every_scale(UNCONDITIONAL, "unconditional-teacher"),
    Claim(
        "digits-unconditional-teacher-wins",
        f"On digits most samples are better with {UNCONDITIONAL.name} than with CFG from the same noise.",
        f"{PAPER}, the win rates",
        _prototype("0.73"),
        f"{_DIGITS}, w_g = 1: share of the samples that are nearer to a held-out digit of the class.",
        AtLeast(0.6),
    ),
    Claim(
        "digits-plain-teacher-has-a-better-distribution",
        "On digits the method as the text has it, without data and without guidance of the teacher, improves"
        " the distribution.",
        f"{PAPER}, the method",
        _prototype("0.90"),
        f"{_DIGITS}, {PLAIN.name}, w_g = 1: Fréchet distance in a classifier's features, over that of CFG.",
        AtMost(1.0),
    ),
    Claim(
        "digits-plain-teacher-is-nearer",
        "On digits it also brings samples nearer to real images.",
        f"{PAPER}, the method",
        _prototype("1.06, which it does not"),
        f"{_DIGITS}, {PLAIN.name}, w_g = 1: mean distance to the nearest held-out digit of the class, over"
        " that of CFG.",
        AtMost(1.0),
    ),
    Claim(
        "cost-below-full-simulation",
        "A step costs a fraction of one that samples to the end.",
        f"{PAPER}, the training costs",
        "5.2 in GPU hours (2 against 10.4); 53 / 15 = 3.5 network evaluations",
        "Multiplications of a step of full simulation (25 solver steps) over those of Self-NPO (5), w = -5,"
        " the digits' network; counted, hence the same for every seed.",
        AtLeast(3.0),
    ),
    Claim(
        "cost-saves-what-the-solver-saves",
        "The cost falls with the number of solver steps, to a fifth.",
        f"{PAPER}, the training costs",
        "5.2 in GPU hours (2 against 10.4), 25 / 5 solver steps",
        "The same ratio.",
        AtLeast(5.0),
    ),
    Claim(
        "cost-below-one-percent-of-diffusion-npo",
        "Self-NPO costs less than 1 % of Diffusion-NPO.",
        f"{PAPER}, the abstract",
        "0.5 % (2 against 384 GPU hours)",
        f"{_PLANE}: multiplications of all steps of Self-NPO (w = -5) over those of Diffusion-NPO, without"
        " what the pairs cost; counted, hence the same for every seed.",
        AtMost(0.01),
    ),
)


def value(results: Results, arm: Arm, name: str, guidance: float) -> np.ndarray:
    """What was measured of an arm at one guidance.

    Args:
        results: of a part.
        arm: one of its arms.
        name: of the measure.
        guidance: w_g.

    Returns:
        One value for each seed; samples are averaged.
    """
    found = results[arm][name][:, GUIDANCES.index(guidance)]
    return found.mean(axis=1) if found.ndim > 1 else found


def gain(results: Results, arm: Arm, guidance: float, over: Arm = CFG) -> np.ndarray:
    """How much higher the reward is, paired by seed and noise.

    Args:
        results: of part A.
        arm: one of its arms.
        guidance: w_g.
        over: the arm that it is compared with.

    Returns:
        Nats, one value for each seed.
    """
    return value(results, arm, "reward", guidance) - value(results, over, "reward", guidance)


def ratio(results: Results, arm: Arm, name: str, guidance: float) -> np.ndarray:
    """A measure over that of CFG.

    Args:
        results: of part B.
        arm: one of its arms.
        name: of the measure.
        guidance: w_g.

    Returns:
        One value for each seed.
    """
    return value(results, arm, name, guidance) / value(results, CFG, name, guidance)


def wins(results: Results, arm: Arm, guidance: float) -> np.ndarray:
    """How many samples are better than with CFG from the same noise; ties count for neither.

    Args:
        results: of a part.
        arm: one of its arms.
        guidance: w_g.

    Returns:
        Shares, one for each seed.
    """
    at = GUIDANCES.index(guidance)
    if "reward" in results[arm]:
        return np.mean(results[arm]["reward"][:, at] > results[CFG]["reward"][:, at], axis=1)
    return np.mean(results[arm]["distance"][:, at] < results[CFG]["distance"][:, at], axis=1)


def at_equal_variation(results: Results, arm: Arm, guidance: float) -> np.ndarray:
    """How much higher the reward is than that of CFG at the guidance that leaves it as diverse.

    Args:
        results: of part A.
        arm: one of its arms.
        guidance: w_g of the arm.

    Returns:
        Nats, one value for each seed. Beyond the ends of CFG's curve its ends count.
    """
    gains = []
    for seed, reward in enumerate(value(results, arm, "reward", guidance)):
        rewards, variations = (
            np.array([value(results, CFG, name, w)[seed] for w in GUIDANCES])
            for name in ("reward", "variation")
        )
        order = np.argsort(variations)
        variation = value(results, arm, "variation", guidance)[seed]
        gains.append(reward - np.interp(variation, variations[order], rewards[order]))
    return np.array(gains)


def measurements(
    plane: Results, well_trained: Results, digits: Results, costs: Costs
) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        plane: part A.
        well_trained: part A with a well trained network.
        digits: part B.
        costs: of the steps.

    Returns:
        Values by the claim's name.
    """

    def share_won(
        results: Results, arm: Arm, names: tuple[str, str], guidances: tuple[float, ...]
    ) -> np.ndarray:
        won = []
        for name in names:
            sign = 1 if name == "reward" else -1
            for w in guidances:
                won.append(sign * value(results, arm, name, w) > sign * value(results, CFG, name, w))
        return np.mean(won, axis=0)

    def on_digits(arm: Arm, slug: str) -> dict[str, np.ndarray]:
        return {
            f"digits-{slug}-is-nearer": ratio(digits, arm, "distance", 1.0),
            f"digits-{slug}-has-a-better-distribution": ratio(digits, arm, "frechet", 1.0),
            f"digits-{slug}-wins": wins(digits, arm, 1.0),
        }

    def improves_both(arm: Arm) -> np.ndarray:
        return share_won(digits, arm, ("distance", "frechet"), (1.0, 2.0, 4.0))

    def reward(arm: Arm) -> np.ndarray:
        return value(plane, arm, "reward", 1.0)

    upto_two = (0.5, 1.0, 2.0)
    dpo_alone = np.maximum(reward(DPO_ARMS["base", 0]), reward(DPO_ARMS["base", 1]))
    of_plane, of_digits = (len(results[CFG]["cosine"]) for results in (plane, digits))
    return {
        "plane-self-npo-improves-everywhere": share_won(plane, INVERSE, ("reward", "outliers"), OTHERS),
        "plane-self-npo-gains": gain(plane, INVERSE, 1.0),
        "plane-released-sd15-settings-gain": gain(plane, UNCONDITIONAL, 1.0),
        "plane-plain-self-npo-gains-at-half": gain(plane, PLAIN, 0.5),
        "plane-plain-self-npo-gains-at-one": gain(plane, PLAIN, 1.0),
        "plane-plain-self-npo-gains-at-two": gain(plane, PLAIN, 2.0),
        "plane-diffusion-npo-gains": np.min(
            [gain(plane, NPO[beta], w) for beta in (2.0, 10.0) for w in upto_two], axis=0
        ),
        "plane-self-npo-needs-no-labels": np.minimum(
            reward(INVERSE) - reward(NPO[10.0]), reward(NPO[2.0]) - reward(INVERSE)
        ),
        "plane-self-npo-is-ahead-at-equal-diversity": at_equal_variation(plane, INVERSE, 0.5),
        "plane-self-npo-costs-diversity": np.min(
            [value(plane, INVERSE, "variation", w) - value(plane, CFG, "variation", w) for w in upto_two],
            axis=0,
        ),
        "plane-self-npo-adds-to-dpo": reward(DPO_ARMS["Self-NPO", 1]) - dpo_alone,
        "plane-self-npo-harms-a-good-network": np.max(
            [gain(well_trained, STRONG, w) for w in upto_two], axis=0
        ),
        "digits-inverse-teacher-improves-both": improves_both(INVERSE),
        **on_digits(INVERSE, "inverse-teacher"),
        "digits-weakly-inverse-teacher-improves-both": improves_both(WEAKLY_INVERSE),
        **on_digits(WEAKLY_INVERSE, "weakly-inverse-teacher"),
        "digits-unconditional-teacher-improves-both": improves_both(UNCONDITIONAL),
        "digits-unconditional-teacher-wins": wins(digits, UNCONDITIONAL, 1.0),
        "digits-plain-teacher-has-a-better-distribution": ratio(digits, PLAIN, "frechet", 1.0),
        "digits-plain-teacher-is-nearer": ratio(digits, PLAIN, "distance", 1.0),
        "cost-below-full-simulation": np.full(of_digits, costs.simulation / costs.self_npo),
        "cost-saves-what-the-solver-saves": np.full(of_digits, costs.simulation / costs.self_npo),
        "cost-below-one-percent-of-diffusion-npo": np.full(of_plane, costs.of_diffusion_npo),
    }
