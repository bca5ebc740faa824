"""The tables of the world's models, and what a reader must know of them."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from experiments.claims import mean_interval
from experiments.neg_bias.claims import Seed, format_metrics, repair_metrics, short_accuracy
from experiments.neg_bias.evaluation import CHOICES, FORMATS, SAMPLES, predictions
from experiments.neg_bias.world import CORRECT, GROUPS, INCORRECT, INSUFFICIENT, OFFSETS, VALUES
from experiments.run_dir import Table
from jaxneg.language import Interval, knowledge_partition, paired_bootstrap

PILOT = {
    "YN": ("0.00 (0, 0)", "+0.04 (.04, 0)", "+0.97 (1.0, .03)", "+0.78 (.84, .06)", "+0.79 (.91, .12)"),
    "context": ("0.00",) * 5,
    "CoT": ("0.00", "+0.04", "+0.97", "+0.80", "+0.88"),
    "IDK option": (
        "0.00, idk 0 %",
        "+0.04, idk 14 %",
        "+0.79, idk 16 %",
        "+0.56, idk 23 %",
        "0.00, idk 100 %",
    ),
}
"""An independent run of one world, by group: bias (FNR, FPR)."""

TAUS = (0.3, 0.5, 0.7)
VARIANT_TAU = 0.7
SUBSETS = ("correct", "incorrect", "insufficient")
_UNTAUGHT = (CORRECT, INCORRECT, INSUFFICIENT)


def result_tables(seeds: Sequence[Seed]) -> list[Table]:
    """All tables.

    Args:
        seeds: the arrays of every seed.

    Returns:
        Bias by format and group, knowledge, the estimated partition, intervals of the first seed, heads, and
        remedies.
    """
    return [
        _bias_table(seeds),
        _knowledge_table(seeds),
        _partition_table(seeds),
        _bootstrap_table(seeds[0]),
        _heads_table(seeds),
        _remedies_table(seeds),
    ]


def notes(seeds: Sequence[Seed]) -> list[str]:
    """What limits the claims, in numbers of this run."""
    top = np.mean([seed["top"][seed["group"] == INSUFFICIENT].mean() for seed in seeds])
    correlations = [_correlation(seed) for seed in seeds]
    steps = np.array([seed["repair_steps"] for seed in seeds])
    return [
        "The model has no linguistic prior on the word No: that the bias belongs to the format more than to"
        " the meaning can only be asked of a real language model (--model-dir).",
        f"Of facts that it never saw the model is confidently wrong (mean top probability {top:.2f}), so that"
        " sampling one prompt files many of them under incorrect knowledge; see the table of partitions.",
        "Over heads, the correlation of the score with what the head's ablation changes in logit(No) -"
        f" logit(Yes) is {np.median(correlations):+.2f} in the median"
        f" ({', '.join(f'{each:+.2f}' for each in correlations)}).",
        f"The repair took {np.median(steps[:, 0]):.0f} steps in the median; of other heads, as a control,"
        f" {np.median(steps[:, 1]):.0f}: heads without a positive score are left as they are.",
        "Fine-tuning on balanced yes-no questions, another baseline, is how this model was trained.",
        "Formats, prompts, partition, bias score and the details of the repair are this project's own.",
    ]


def _bias_table(seeds: Sequence[Seed]) -> Table:
    found = [format_metrics(seed) for seed in seeds]
    rows = []
    for name in FORMATS:
        for group, of_group in enumerate(GROUPS):
            of_seeds = [metrics[name][group] for metrics in found]

            def middle(metric: str, of_seeds: list = of_seeds) -> float:
                return float(np.median([metrics[metric] for metrics in of_seeds]))

            rows.append(
                [
                    name,
                    of_group,
                    f"{middle('negative_bias'):+.2f} ({middle('fnr'):.2f}, {middle('fpr'):.2f})",
                    PILOT[name][group],
                    f"{middle('pr_gap'):+.2f}",
                    f"{middle('accuracy_all'):.2f}",
                    f"{1 - middle('idk_rate'):.2f}",
                ]
            )
    columns = ["format", "facts", "bias (FNR, FPR)", "pilot", "precision - recall", "accuracy", "coverage"]
    return Table("Negative bias by format and knowledge, medians over seeds", columns, rows)


def _knowledge_table(seeds: Sequence[Seed]) -> Table:
    def cell(values: np.ndarray) -> str:
        estimate, low, high, _ = mean_interval(values)
        return f"{estimate:.2f} [{low:.2f}, {high:.2f}]" if len(values) > 1 else f"{estimate:.2f}"

    truth, stated = (np.stack([short_accuracy(seed, to) for seed in seeds]) for to in ("truth", "stated"))
    rows = []
    for group, name in enumerate(GROUPS):
        number = [int((seed["group"] == group).sum()) for seed in seeds]
        top = np.array([seed["top"][seed["group"] == group].mean() for seed in seeds])
        rows.append(
            [name, f"{np.mean(number):.0f}", cell(truth[:, group]), cell(stated[:, group]), cell(top)]
        )
    columns = ["facts", "number", "short answer is true [95 %]", "is what was stated", "top probability"]
    return Table("What the models know", columns, rows)


def _partition_table(seeds: Sequence[Seed]) -> Table:
    """How the estimated knowledge lies to the true one, in shares of each true group."""

    def shares(subsets: Callable[[Seed], Int[np.ndarray, " facts"]]) -> np.ndarray:
        of_seeds = [
            [[np.mean(found[seed["group"] == g] == s) for s in range(3)] for g in range(len(GROUPS))]
            for seed in seeds
            for found in [subsets(seed)]
        ]
        return np.mean(of_seeds, axis=0)

    probes: dict[str, Callable[[Seed], Int[np.ndarray, " facts"]]] = {
        f"{SAMPLES} short answers, tau {tau:g}": lambda seed, tau=tau: _partition(seed, slice(1), tau)
        for tau in TAUS
    }
    choices = slice(OFFSETS, OFFSETS + CHOICES)
    probes[f"{CHOICES} multiple choices, tau 0.5"] = lambda seed: _partition(seed, choices, 0.5)
    probes[f"all {OFFSETS + CHOICES} variants, tau {VARIANT_TAU:g}"] = lambda seed: _partition(
        seed, slice(None), VARIANT_TAU
    )
    rows = []
    for name, subsets in probes.items():
        for group, found in zip(GROUPS, shares(subsets), strict=True):
            rows.append([name, group, *(f"{share:.2f}" for share in found)])
    agreement = np.mean(
        [np.mean(_partition(seed, slice(1), 0.5) == _partition(seed, choices, 0.5)) for seed in seeds]
    )
    title = (
        "Estimated knowledge (columns) beside the true one, means over seeds; short answers and multiple"
        f" choice agree on {agreement:.0%} of the facts"
    )
    return Table(title, ["probe", "facts", *SUBSETS], rows)


def _bootstrap_table(seed: Seed) -> Table:
    """Intervals over facts, a fact's two questions resampled together."""
    rows, columns = [], [list(GROUPS)[group] for group in _UNTAUGHT]
    for name, logits in zip(FORMATS, seed["logits"], strict=True):
        predicted = predictions(logits, option=name == "IDK option")
        cells = []
        for group in _UNTAUGHT:
            low, high = _bias_interval(predicted[seed["group"] == group])
            cells.append(f"[{low:+.2f}, {high:+.2f}]")
        rows.append([name, *cells])
    return Table("Bias in the first world: 95 % bootstrap intervals over facts", ["format", *columns], rows)


def _bias_interval(predicted: Int[np.ndarray, "facts 2"]) -> Interval:
    gold = np.tile([1, 0], (len(predicted), 1))
    return paired_bootstrap(gold, predicted)


def _heads_table(seeds: Sequence[Seed]) -> Table:
    rows = []
    for number, seed in enumerate(seeds):
        before, after = seed["positive_score"]
        treated = [f"{layer}.{head}" for layer, head in seed["heads"]]
        score = [f"{seed['scores'][layer, head]:+.3f}" for layer, head in seed["heads"]]
        left = [f"{seed['scores_after'][layer, head]:+.3f}" for layer, head in seed["heads"]]
        rows.append(
            [
                str(number),
                ", ".join(treated),
                ", ".join(score),
                ", ".join(left),
                f"{after / before:.3f}",
                str(int(seed["repair_steps"][0])),
                f"{_correlation(seed):+.2f}",
            ]
        )
    columns = [
        "world",
        "heads (layer.head)",
        "mean score",
        "after repair",
        "positive part, after / before",
        "steps",
        "correlation with ablation",
    ]
    return Table("Heads of the highest negative attention score", columns, rows)


def _remedies_table(seeds: Sequence[Seed]) -> Table:
    rows = []
    for method in seeds[0]["remedy_names"]:
        found = [repair_metrics(seed, method) for seed in seeds]
        cells = []
        for group in range(len(GROUPS)):
            bias, fpr = (
                np.median([metrics[group][name] for metrics in found]) for name in ("negative_bias", "fpr")
            )
            cells.append(f"{bias:+.2f} ({fpr:.2f})")
        rows.append([str(method), *cells])
    return Table("Bias (FPR) after each remedy, medians over seeds", ["remedy", *GROUPS], rows)


def _partition(seed: Seed, variants: slice, tau: float) -> Int[np.ndarray, " facts"]:
    samples = seed["samples"][:, variants].reshape(len(seed["truth"]), -1)
    return np.asarray(knowledge_partition(jnp.asarray(samples), jnp.asarray(seed["truth"]), VALUES, tau))


def _correlation(seed: Seed) -> float:
    return float(np.corrcoef(seed["scores"].ravel(), seed["effects"].ravel())[0, 1])
