"""What the papers claim, as a world with known knowledge can show it, and the measurements."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim
from experiments.neg_bias.evaluation import FORMATS, predictions
from experiments.neg_bias.world import CORRECT, GROUPS, INCORRECT, INSUFFICIENT, KNOWN, World
from jaxneg.language import binary_metrics

PAPER = "arXiv:2511.10881"
NASA = "arXiv:2408.00137"
SIGN_ONLY = "a sign, in the abstract; the tables were not to be had"

_BIAS = "rate of No where Yes is right, less rate of Yes where No is right"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "known-facts-are-unbiased",
        "Where the model has the right knowledge, it hardly prefers No.",
        f"{PAPER}, abstract",
        SIGN_ONLY,
        f"{_BIAS}; facts stated truly, never asked with yes or no in training",
        AtMost(0.15),
        "median",
    ),
    Claim(
        "missing-knowledge-says-no",
        "Without the knowledge No is the shortcut, although Yes and No were equally frequent in training.",
        f"{PAPER}, abstract",
        SIGN_ONLY,
        f"{_BIAS}; facts never shown",
        AtLeast(0.5),
        "median",
    ),
    Claim(
        "wrong-knowledge-says-no",
        "Wrong knowledge rejects the truth.",
        f"{PAPER}, abstract",
        SIGN_ONLY,
        f"{_BIAS}; facts stated falsely",
        AtLeast(0.8),
        "median",
    ),
    Claim(
        "context-removes-the-bias",
        "A relevant context reduces the bias.",
        f"{PAPER}, abstract",
        SIGN_ONLY,
        f"{_BIAS}, with the truth in the context; the largest of the five groups of facts",
        AtMost(0.05),
        "median",
    ),
    Claim(
        "an-option-not-to-know-lowers-the-bias",
        'The option "I don\'t know" reduces the bias.',
        f"{PAPER}, abstract",
        SIGN_ONLY,
        f"{_BIAS}, idk counted as neither; facts never shown; without the option minus with it",
        AtLeast(0.1),
        "median",
    ),
    Claim(
        "chain-of-thought-does-not-help",
        "Chains of thought amplify the bias.",
        f"{PAPER}, abstract",
        SIGN_ONLY,
        f"{_BIAS}; facts never shown; with recall before the answer minus without",
        AtLeast(-0.02),
        "median",
    ),
    Claim(
        "stated-facts-are-recalled",
        "The world is as built: what was stated is known.",
        "the experiment's own premise",
        "none",
        "share of true short answers; facts stated truly",
        AtLeast(0.9),
        "median",
    ),
    Claim(
        "untaught-facts-are-not-recalled",
        "The world is as built: what was never shown is not known.",
        "the experiment's own premise",
        "none",
        "share of true short answers; facts never shown, of 10 values",
        AtMost(0.25),
        "median",
    ),
    Claim(
        "repair-aligns-the-heads",
        "Fine-tuning the negative heads alone brings their attention to No down to that to Yes.",
        NASA,
        "qualitative only",
        "mean positive part of the score of the treated heads on 1000 questions, after over before",
        AtMost(0.1),
        "median",
    ),
    Claim(
        "repair-reduces-the-bias",
        "Aligned heads close the gap between precision and recall.",
        f"{NASA}, abstract",
        "significantly reduced; the tables were not to be had",
        f"{_BIAS}; facts never shown; before the repair minus after it",
        AtLeast(0.1),
        "median",
    ),
    Claim(
        "repair-keeps-what-is-known",
        "The repair preserves what the model can do.",
        f"{NASA}, abstract",
        "qualitative only",
        "rate of Yes where No is right, after the repair; facts known in every format",
        AtMost(0.05),
        "median",
    ),
)

Seed = Mapping[str, np.ndarray]
"""The arrays of one seed: its world, what `ask_everything` found, and the repair."""


def world_of(seed: Seed) -> World:
    """The facts of a seed."""
    return World(seed["truth"], seed["stated"], seed["group"])


def group_metrics(
    predicted: Int[np.ndarray, "facts 2"], group: Int[np.ndarray, " facts"]
) -> list[dict[str, float]]:
    """The metrics of yes-no answers in every group of facts.

    Args:
        predicted: 1 for yes, 0 for no, 2 for neither; the first twin names the truth.
        group: of each fact.

    Returns:
        `binary_metrics` by group.
    """
    gold = np.tile([1, 0], (len(predicted), 1))
    return [
        binary_metrics(gold[group == each].ravel(), predicted[group == each].ravel())
        for each in range(len(GROUPS))
    ]


def format_metrics(seed: Seed) -> dict[str, list[dict[str, float]]]:
    """The metrics of every format and group."""
    return {
        name: group_metrics(predictions(logits, option=name == "IDK option"), seed["group"])
        for name, logits in zip(FORMATS, seed["logits"], strict=True)
    }


def short_accuracy(seed: Seed, to: str = "truth") -> Float[np.ndarray, " groups"]:
    """The share of short answers in every group that are the truth, or what was stated."""
    right = seed["short"] == seed[to]
    return np.array([right[seed["group"] == group].mean() for group in range(len(GROUPS))])


def repair_metrics(seed: Seed, method: str) -> list[dict[str, float]]:
    """The metrics of plain yes-no answers in every group, after one of the remedies."""
    logits = seed["remedies"][list(seed["remedy_names"]).index(method)]
    return group_metrics(predictions(np.pad(logits, [(0, 0), (0, 0), (0, 1)]), option=False), seed["group"])


def measurements(seeds: Sequence[Seed]) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        seeds: the arrays of every seed.

    Returns:
        Values by the claim's name.
    """
    found: dict[str, list[float]] = {claim.name: [] for claim in CLAIMS}
    for seed in seeds:
        bias = {
            name: [float(group["negative_bias"]) for group in groups]
            for name, groups in format_metrics(seed).items()
        }
        plain, accuracy = bias["YN"], short_accuracy(seed)
        repaired = repair_metrics(seed, "repair")
        before, after = seed["positive_score"]
        values = {
            "known-facts-are-unbiased": plain[CORRECT],
            "missing-knowledge-says-no": plain[INSUFFICIENT],
            "wrong-knowledge-says-no": plain[INCORRECT],
            "context-removes-the-bias": max(bias["context"]),
            "an-option-not-to-know-lowers-the-bias": plain[INSUFFICIENT] - bias["IDK option"][INSUFFICIENT],
            "chain-of-thought-does-not-help": bias["CoT"][INSUFFICIENT] - plain[INSUFFICIENT],
            "stated-facts-are-recalled": accuracy[CORRECT],
            "untaught-facts-are-not-recalled": accuracy[INSUFFICIENT],
            "repair-aligns-the-heads": after / before,
            "repair-reduces-the-bias": plain[INSUFFICIENT] - repaired[INSUFFICIENT]["negative_bias"],
            "repair-keeps-what-is-known": repaired[KNOWN]["fpr"],
        }
        for name, value in values.items():
            found[name].append(float(value))
    return dict(found)
