"""The figures of the CET experiment: means over seeds with 95 % intervals."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.cet import generator, pooled
from experiments.cet.training import Arm
from experiments.claims import mean_interval
from experiments.run_dir import RunDir

NAIVE, COUPLED, FILTERED, ORACLE, SHARED = "#7f8c8d", "#2166ac", "#c2792b", "#1b7837", "#b2182b"
KINDS = {
    "naive": NAIVE,
    "CET and its variants": COUPLED,
    "filters": FILTERED,
    "oracle": ORACLE,
    "shared inputs": SHARED,
}


def _colour(arm: Arm) -> str:
    if arm.inputs == "shared":
        return SHARED
    if arm.filter:
        return ORACLE if arm.filter == "oracle" else FILTERED
    return NAIVE if arm.weighting == "none" else COUPLED


def _bars(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and half widths of the intervals, 0 for one seed."""
    estimates, lows, _, _ = np.array([mean_interval(of) for of in values]).T
    return estimates, np.where(np.isfinite(lows), estimates - lows, 0.0)


def _dots(axes: Axes, arms: tuple[Arm, ...], values: np.ndarray) -> None:
    estimates, half = _bars(values)
    for place, (arm, mean, width) in enumerate(zip(arms, estimates, half, strict=True)):
        axes.errorbar(mean, place, xerr=width, fmt="o", color=_colour(arm), markersize=5, elinewidth=1.5)
    axes.set_yticks(range(len(arms)), [f"{arm.negatives}: {arm.name}" for arm in arms], fontsize=8)
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", axis="both")
    axes.set_axisbelow(True)


def _legend(axes: Axes, arms: tuple[Arm, ...]) -> None:
    shown = {_colour(arm) for arm in arms}
    for name, colour in KINDS.items():
        if colour in shown:
            axes.plot([], [], "o", color=colour, label=name)


def draw_generator(run_dir: RunDir, arms: tuple[Arm, ...], made: Mapping[str, np.ndarray]) -> None:
    """Every arm in the generator."""
    figure, axes = plt.subplots(figsize=(8, 5.6), layout="constrained")
    _dots(axes, arms, made["ndcg"])
    axes.set_xlabel("nDCG@10 against true relevance, held-out queries")
    _legend(axes, arms)
    figure.legend(loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=8)
    run_dir.figure(
        "generator",
        figure,
        "Generator: quality of the ranker by negatives and method, mean over draws with 95 % interval. The"
        " strong retriever's negatives are often relevant; the oracle leaves those out.",
    )


def draw_temperature(run_dir: RunDir, arms: tuple[Arm, ...], made: Mapping[str, np.ndarray]) -> None:
    """Quality and weight of false negatives against tau."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    groups = {
        "separate inputs": ("separate", "none", COUPLED),
        "separate inputs, mean weight 1": ("separate", "mean", "#67a9cf"),
        "shared inputs": ("shared", "none", SHARED),
    }
    for name, (inputs, normalise, colour) in groups.items():
        chosen = sorted(
            (arm.tau, place)
            for place, arm in enumerate(arms)
            if (arm.weighting, arm.inputs, arm.normalise) == ("coupled", inputs, normalise)
            and not arm.positive_ips
        )
        if not chosen:
            continue
        taus, places = (list(of) for of in zip(*chosen, strict=True))
        for axes, key in ((left, "ndcg"), (right, "false_weight")):
            estimates, half = _bars(made[key][places])
            low = np.maximum(estimates - half, 1e-4) if key == "false_weight" else estimates - half
            axes.plot(taus, np.maximum(estimates, 1e-4), "o-", color=colour, label=name, markersize=4)
            axes.fill_between(taus, low, estimates + half, color=colour, alpha=0.15, linewidth=0)
    for arm, style in ((generator.NAIVE_STRONG, ":"), (generator.ORACLE, "--")):
        mean = made["ndcg"][arms.index(arm)].mean()
        left.axhline(mean, color="0.3", linestyle=style, linewidth=1, label=f"{arm.name}, separate inputs")
    right.axhline(1, color="0.3", linestyle=":", linewidth=1)
    left.set(xlabel="temperature tau", ylabel="nDCG@10", xscale="log")
    right.set(xlabel="temperature tau", ylabel="mean weight, false over true", xscale="log", yscale="log")
    for axes in (left, right):
        axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    run_dir.figure(
        "temperature",
        figure,
        "Generator, strong negatives: quality (left) and how much a false negative weighs beside a true one"
        " (right) against the temperature, 95 % interval over draws shaded. At 10 all negatives weigh the"
        " same. With shared inputs false negatives can weigh more than true ones.",
    )


def draw_false_shares(run_dir: RunDir, shares: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """False negatives of both retrievers against the depth of the pool."""
    figure, row = plt.subplots(
        1, len(shares), figsize=(3.6 * len(shares) + 1, 3.4), layout="constrained", squeeze=False
    )
    for axes, (name, of) in zip(row[0], shares.items(), strict=True):
        for retriever, colour in ((pooled.BM25, NAIVE), (pooled.DENSE, COUPLED)):
            axes.plot(pooled.DEPTHS, 100 * of[retriever], "o-", color=colour, label=retriever)
        axes.set(title=name, xlabel="depth of BM25's pool", xscale="log", ylim=(0, None))
        axes.set_xticks(pooled.DEPTHS, [str(depth) for depth in pooled.DEPTHS])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    row[0, 0].set_ylabel(f"relevant among the first\n{pooled.COUNTED} unlabelled, %")
    row[0, 0].legend(frameon=False)
    run_dir.figure(
        "false_negatives",
        figure,
        "How many unlabelled documents at the top of a retriever are relevant, when labels come from BM25's"
        " first documents: counted on full judgments, without training.",
    )


def draw_pooled(
    run_dir: RunDir,
    arms: tuple[Arm, ...],
    real: Mapping[str, Mapping[pooled.Pooling, Mapping[str, np.ndarray]]],
    quality: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Every arm on every collection and pooling."""
    poolings = list(next(iter(real.values())))
    figure, grid = plt.subplots(
        len(poolings),
        len(real),
        figsize=(3.4 * len(real) + 2.4, 2.9 * len(poolings) + 0.6),
        layout="constrained",
        squeeze=False,
        sharey=True,
        sharex="col",
    )
    for column, (name, of) in enumerate(real.items()):
        for axes, pooling in zip(grid[:, column], poolings, strict=True):
            axes.axvline(quality[name][pooled.DENSE][0], color="0.3", linestyle="--", linewidth=1)
            _dots(axes, arms, of[pooling]["ndcg"])
            axes.set_title(f"{name}\n{pooling.name.replace('; ', chr(10))}", fontsize=8)
            axes.set_ylim(len(arms) - 0.5, -0.5)
        grid[-1, column].set_xlabel("nDCG@10, all judgments")
    _legend(grid[0, 0], arms)
    handles, names = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=8)
    run_dir.figure(
        "collections",
        figure,
        "Collections: quality of the ranker that re-ranks the dense retriever's candidates, by negatives and"
        " method, mean over seeds with 95 % interval; the dashed line is the dense retriever alone.",
    )
