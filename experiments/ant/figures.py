"""The figures: means over the seeds with their 95 % intervals."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.ant.affinity import BIN, by_bin, by_distance
from experiments.ant.claims import GAPS
from experiments.ant.quality import SHOWN, Judge, Quality
from experiments.ant.training import (
    MIN_SNR,
    NASH,
    P2,
    PCGRAD,
    SCHEDULE,
    STRATIFIED,
    TIMESTEPS,
    UW,
    VANILLA,
    Arm,
)
from experiments.claims import mean_interval

COLOURS: dict[Arm, str] = {
    VANILLA: "black",
    STRATIFIED: "tab:gray",
    PCGRAD: "tab:orange",
    NASH: "tab:green",
    UW: "tab:blue",
    MIN_SNR: "tab:red",
    P2: "tab:purple",
}
"""Of a method; clusterings and further weights take their method's."""


def draw_affinity(affinity: Float[np.ndarray, "seeds points points"], clusters: Sequence[int]) -> Figure:
    """The map of affinities, and the affinity against the distance.

    Args:
        affinity: of vanilla training.
        clusters: boundaries by gradient.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10.5, 4.3), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = left.imshow(
        affinity.mean(axis=0),
        origin="lower",
        extent=(0, TIMESTEPS, 0, TIMESTEPS),
        vmin=-1,
        vmax=1,
        cmap="RdBu_r",
    )
    for bound in clusters[1:-1]:
        left.axvline(bound, color="black", linewidth=0.8)
        left.axhline(bound, color="black", linewidth=0.8)
    left.set(xlabel="timestep", ylabel="timestep")
    figure.colorbar(shown, ax=left, label="cosine of the gradients", shrink=0.85)
    apart = by_distance(affinity[0])[0]
    _band(right, apart, np.array([by_distance(own)[1] for own in affinity]), "tab:blue", "each distance")
    bins = np.array([by_bin(own) for own in affinity])
    estimates, halves = _intervals(bins)
    middles = BIN * (np.arange(bins.shape[1]) + 0.5)
    right.errorbar(
        middles,
        estimates,
        xerr=BIN / 2,
        yerr=halves,
        fmt="o",
        color="black",
        capsize=3,
        label=f"bins of {BIN}",
    )
    right.axhline(0, color="black", linewidth=1)
    right.set(xlabel="|Δt|", ylabel="cosine of the gradients")
    right.grid(alpha=0.3)
    right.legend(frameon=False)
    return figure


def draw_clusters(clusters: Mapping[str, Sequence[int]]) -> Figure:
    """The clusterings, on the log-SNR.

    Args:
        clusters: boundaries of each clustering.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    curve, strips = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    curve.plot(np.arange(TIMESTEPS), SCHEDULE.log_snr, color="black")
    for bound in clusters["SNR"][1:-1]:
        curve.axvline(bound, color="tab:gray", linewidth=0.8, linestyle=":")
    curve.set_ylabel("log SNR")
    shades = ("tab:blue", "lightsteelblue")
    for row, bounds in enumerate(clusters.values()):
        for number, (low, high) in enumerate(pairwise(bounds)):
            strips.barh(row, high - low, left=low, height=0.8, color=shades[number % 2])
        for bound in bounds[1:-1]:
            strips.annotate(str(bound), (bound, row), ha="center", va="center", fontsize=7)
    strips.set_yticks(range(len(clusters)), [f"by {name}" for name in clusters])
    strips.set(xlabel="timestep", xlim=(0, TIMESTEPS))
    strips.invert_yaxis()
    return figure


def draw_quality(found: Mapping[Arm, Quality], last: int) -> Figure:
    """The distance of every method's samples.

    Args:
        found: of every method.
        last: the checkpoint.

    Returns:
        The figure.
    """
    arms = sorted(found, key=lambda arm: -found[arm].fd[:, last].mean())
    figure = Figure(figsize=(10.0, 1.2 + 0.3 * len(arms)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    titles = ("Fréchet distance, classifier's features", "Fréchet distance, latents")
    for axis, title, name in zip(axes, titles, ("fd", "own_fd"), strict=True):
        for height, arm in enumerate(arms):
            values = getattr(found[arm], name)[:, last]
            estimate, low, high, _ = mean_interval(values)
            colour = colour_of(arm)
            axis.plot(values, np.full(len(values), height), ".", color=colour, alpha=0.4, markeredgewidth=0)
            axis.errorbar(
                estimate, height, xerr=[[estimate - low], [high - estimate]], fmt="o", color=colour, capsize=3
            )
        vanilla = getattr(found[VANILLA], name)[:, last].mean()
        axis.axvline(vanilla, color="black", linewidth=1, linestyle=":")
        axis.set_yticks(range(len(arms)), [arm.name for arm in arms])
        axis.set_xlabel(f"{title} (left is better)")
        axis.set_xlim(left=0)
        axis.grid(axis="x", alpha=0.3)
    return figure


def draw_curves(found: Mapping[Arm, Quality], every: int) -> Figure:
    """Distances over the training.

    Args:
        found: of every method.
        every: steps between checkpoints.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axis = figure.subplots()
    for arm in (arm for arm in COLOURS if arm in found):
        values = found[arm].fd
        _band(axis, every * np.arange(1, values.shape[1] + 1), values, COLOURS[arm], arm.name)
    axis.set(xlabel="step", ylabel="Fréchet distance, classifier's features", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend(frameon=False)
    return figure


def draw_gaps(gaps: Mapping[Arm, np.ndarray], bounds: Sequence[int]) -> Figure:
    """Transfer gaps of each interval.

    Args:
        gaps: ``[seeds, intervals]`` of each method.
        bounds: of the intervals.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10.5, 4.0), layout="constrained")
    ours, papers = figure.subplots(1, 2, width_ratios=(2, 1))
    width = 0.8 / len(gaps)
    for number, (arm, values) in enumerate(gaps.items()):
        estimates, halves = _intervals(values)
        places = np.arange(values.shape[1]) + (number - (len(gaps) - 1) / 2) * width
        ours.bar(places, estimates, width, yerr=halves, color=colour_of(arm), capsize=2, label=arm.name)
    for number, (name, values) in enumerate(GAPS.items()):
        places = np.arange(len(values)) + (number - 0.5) * 0.4
        papers.bar(places, values, 0.4, color=("black", "tab:gray")[number], label=f"vanilla {name}")
    names = [f"{low}–{high - 1}" for low, high in pairwise(bounds)]
    ours.set_xticks(range(len(names)), names)
    papers.set_xticks(range(5), ["1–200", "201–400", "401–600", "601–800", "801–1000"], fontsize=7)
    ours.set(title="digits", xlabel="timesteps of the specialist", ylabel="gap of the Fréchet distance")
    papers.set(title="the paper, FFHQ", xlabel="timesteps of the specialist", ylabel="gap of the FID")
    for axis in (ours, papers):
        axis.axhline(0, color="black", linewidth=1)
        axis.grid(axis="y", alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    return figure


def draw_samples(shown: Mapping[str, np.ndarray], judge: Judge) -> Figure:
    """Samples, a method in a row.

    Args:
        shown: grey levels ``[samples, 64]`` by the method's name.
        judge: for the real ones.

    Returns:
        The figure.
    """
    rows = {"real": np.asarray(judge.pixels(jnp.asarray(judge.x[:SHOWN]))), **shown}
    figure = Figure(figsize=(8.0, 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (name, pixels) in zip(axes, rows.items(), strict=True):
        tiles = np.pad(pixels.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)), constant_values=-1)
        axis.imshow(np.concatenate(tiles, axis=1), cmap="gray", vmin=-1, vmax=1)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_ylabel(name, rotation=0, ha="right", va="center")
    return figure


def colour_of(arm: Arm) -> str:
    """The colour of a method.

    Args:
        arm: the method.

    Returns:
        A colour of matplotlib's.
    """
    return COLOURS[arm] if arm in COLOURS else COLOURS[Arm(arm.method)]


def _intervals(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means over the first axis, and half their intervals."""
    found = np.array([mean_interval(column) for column in values.T])
    return found[:, 0], found[:, 2] - found[:, 0]


def _band(axis: Axes, places: np.ndarray, values: np.ndarray, colour: str, label: str) -> None:
    estimates, halves = _intervals(values)
    axis.plot(places, estimates, color=colour, label=label)
    axis.fill_between(places, estimates - halves, estimates + halves, color=colour, alpha=0.15, linewidth=0)
