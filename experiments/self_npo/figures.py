"""The figures: means over the seeds with their 95 % intervals, and samples of the first seed."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import mean_interval
from experiments.digits import CLASSES as DIGITS
from experiments.digits import Latents
from experiments.self_npo import mixture
from experiments.self_npo.arms import CFG, Arm, Results
from experiments.self_npo.claims import (
    AUTOGUIDANCE,
    DPO_ARMS,
    GUIDANCES,
    HALF_INVERSE,
    INVERSE,
    INVERSE_FROM_NOISE,
    NPO,
    OTHERS,
    PLAIN,
    SIMULATED,
    STRONG,
    UNCONDITIONAL,
    WEAKLY_INVERSE,
    gain,
    ratio,
    value,
)

STYLES: Mapping[Arm, tuple[str, str]] = {
    CFG: ("black", "-"),
    INVERSE: ("#b2182b", "-"),
    INVERSE_FROM_NOISE: ("#b2182b", "--"),
    HALF_INVERSE: ("#b2182b", ":"),
    WEAKLY_INVERSE: ("#ef8a62", "--"),
    UNCONDITIONAL: ("#c2792b", "-"),
    PLAIN: ("#999999", "--"),
    SIMULATED: ("#762a83", "-"),
    NPO[2.0]: ("#2166ac", "-"),
    NPO[10.0]: ("#2166ac", "--"),
    NPO[50.0]: ("#2166ac", ":"),
    AUTOGUIDANCE: ("#1b7837", "-"),
    STRONG: ("#c2792b", "-"),
}
"""Colours are methods; dashes are settings."""
DPO_STYLES = {"base": "black", "Self-NPO": "#b2182b", "Diffusion-NPO": "#2166ac"}
SHARES = {0: ":", 0.5: "--", 1: "-"}
SHOWN = (CFG, INVERSE, NPO[2.0], AUTOGUIDANCE)
"""The arms whose samples are drawn, if they are there."""
CLASS_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
EXTENT, CELLS = 2.1, 150
ROWS = 4
"""Samples of each digit."""


def draw_pareto(plane: Results, well_trained: Results) -> Figure:
    """Reward against diversity, along the weights of guidance.

    Args:
        plane: of part A.
        well_trained: of part A with the network that is trained well.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(14.0, 5.0), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for arm, (colour, dash) in STYLES.items():
        if arm in plane:
            _way(left, plane, arm, arm.name, colour, dash)
        if arm in well_trained:
            _way(right, well_trained, arm, arm.name, colour, dash)
    for (name, alpha), arm in DPO_ARMS.items():
        if arm in plane:
            _way(middle, plane, arm, f"{name}, a = {alpha:g}", DPO_STYLES[name], SHARES[alpha])
    titles = ("base network", "DPO network, by its negative", "well trained network")
    for axis, title in zip((left, middle, right), titles, strict=True):
        axis.set_yscale("symlog", linthresh=1.0)
        axis.set(title=title, xlabel="total variation from uniform (left is diverse)", ylabel="reward (nats)")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    return figure


def draw_gains(plane: Results) -> Figure:
    """The gain in reward over CFG and the outliers, at each weight of guidance.

    Args:
        plane: of part A.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    arms = [arm for arm in STYLES if arm in plane]
    for arm in arms:
        colour, dash = STYLES[arm]
        if arm != CFG:
            _line(left, OTHERS, [gain(plane, arm, w) for w in OTHERS], arm.name, colour, dash)
        outliers = [value(plane, arm, "outliers", w) for w in GUIDANCES]
        _line(right, GUIDANCES, outliers, arm.name, colour, dash)
    left.axhline(0, color="black", linewidth=1)
    left.set(yscale="symlog", ylabel="gain in reward over CFG (nats)")
    right.axhline(mixture.OUTLIER, color="black", linewidth=1, linestyle=":")
    right.set(ylabel="share of outliers (dotted: true points)")
    for axis in (left, right):
        axis.set(xlabel="weight of guidance $w_g$")
        axis.grid(alpha=0.3)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def draw_plane(plane: Results) -> Figure:
    """The exact density of each class, and samples over it.

    Args:
        plane: of part A.

    Returns:
        The figure.
    """
    arms = [arm for arm in SHOWN if arm in plane]
    guidances = (0.5, 1.0, 2.0)
    figure = Figure(figsize=(3.1 * len(guidances), 3.1 * len(arms)), layout="constrained")
    axes = figure.subplots(len(arms), len(guidances), squeeze=False)
    side = jnp.linspace(-EXTENT, EXTENT, CELLS)
    points = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
    labels = [jnp.full(len(points), c) for c in range(mixture.CLASSES)]
    log_density = jax.jit(mixture.log_density)
    density = [np.asarray(log_density(points, label)).reshape(CELLS, CELLS) for label in labels]
    for row, arm in zip(axes, arms, strict=True):
        row[0].set_ylabel(arm.name)
        for axis, guidance in zip(row, guidances, strict=True):
            at = GUIDANCES.index(guidance)
            for number, (found, colour) in enumerate(zip(density, CLASS_COLOURS, strict=True)):
                axis.contour(side, side, found, levels=[-3.0, 0.0], colors=colour, linewidths=0.6, alpha=0.7)
                of_class = plane[arm]["samples"][at][number :: mixture.CLASSES][:250]
                axis.plot(*of_class.T, ".", color=colour, markersize=2.5, alpha=0.6, markeredgewidth=0)
            axis.set(aspect="equal", xticks=[], yticks=[], xlim=(-EXTENT, EXTENT), ylim=(-EXTENT, EXTENT))
            reward = plane[arm]["reward"][0, at].mean()
            axis.set_title(f"$w_g$ = {guidance:g}: reward {reward:.2f}", fontsize=9)
    return figure


def draw_digit_quality(digits: Results) -> Figure:
    """Both distances against the weight of guidance.

    Args:
        digits: of part B.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(14.0, 4.6), layout="constrained")
    axes = figure.subplots(1, 3)
    names = {"distance": "distance to the nearest held-out digit", "frechet": "Fréchet distance"}
    for axis, (name, text) in zip(axes, names.items(), strict=False):
        for arm in [arm for arm in STYLES if arm in digits]:
            _line(axis, GUIDANCES, [value(digits, arm, name, w) for w in GUIDANCES], arm.name, *STYLES[arm])
        axis.set(xlabel="weight of guidance $w_g$", ylabel=f"{text} (lower is better)")
        axis.grid(alpha=0.3)
    for arm in [arm for arm in STYLES if arm in digits and arm != CFG]:
        colour, dash = STYLES[arm]
        ratios = (np.array([ratio(digits, arm, name, w).mean() for w in OTHERS]) for name in names)
        axes[2].plot(*ratios, dash, marker="o", color=colour, markersize=4)
    axes[2].axhline(1, color="black", linewidth=1)
    axes[2].axvline(1, color="black", linewidth=1)
    axes[2].set(xlabel="ratio of the distances to CFG's", ylabel="ratio of the Fréchet distances to CFG's")
    axes[2].grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def draw_digits(digits: Results, latents: Latents, guidance: float) -> Figure:
    """Digits of the first seed under the same guidance and from the same noise.

    Args:
        digits: of part B.
        latents: what decodes them.
        guidance: w_g.

    Returns:
        The figure.
    """
    arms = [arm for arm in (CFG, INVERSE, WEAKLY_INVERSE, UNCONDITIONAL) if arm in digits]
    figure = Figure(figsize=(3.4 * len(arms), 1.9), layout="constrained")
    axes = figure.subplots(1, len(arms), squeeze=False)[0]
    for axis, arm in zip(axes, arms, strict=True):
        x = digits[arm]["samples"][GUIDANCES.index(guidance)][: ROWS * DIGITS]
        images = np.asarray(latents.decode(jnp.asarray(x))).reshape(ROWS, DIGITS, 8, 8)
        images = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
        axis.imshow(images.swapaxes(1, 2).reshape(10 * ROWS, 10 * DIGITS), cmap="gray", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_title(arm.name, fontsize=9)
    return figure


def _way(axis: Axes, results: Results, arm: Arm, label: str, colour: str, dash: str) -> None:
    variation, reward = (
        np.array([value(results, arm, name, w).mean() for w in GUIDANCES]) for name in ("variation", "reward")
    )
    axis.plot(variation, reward, dash, color=colour, marker="o", markersize=3, label=label)
    if arm == CFG:
        for w, place in zip(GUIDANCES, zip(variation, reward, strict=True), strict=True):
            axis.annotate(f"$w_g$ = {w:g}", place, fontsize=7, xytext=(4, 4), textcoords="offset points")


def _line(
    axis: Axes, at: Sequence[float], values: Sequence[np.ndarray], label: str, colour: str, dash: str
) -> None:
    means, lows, highs, _ = np.array([mean_interval(found) for found in values]).T
    axis.plot(at, means, dash, color=colour, marker="o", markersize=3, label=label)
    if len(values[0]) > 2:
        axis.fill_between(at, lows, highs, color=colour, alpha=0.06, linewidth=0)
