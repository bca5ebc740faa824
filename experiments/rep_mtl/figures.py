"""The figures: means over the seeds with their 95 % intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.claims import mean_interval
from experiments.rep_mtl.claims import CSA, FULL, SAFE, TSR, WITH_CSA, WITHOUT_CSA
from experiments.rep_mtl.comparison import EW, Results, gains
from experiments.rep_mtl.spectra import HEALTHY
from experiments.rep_mtl.training import EVERY, Method

KINDS = {"TSR": "tab:blue", "CSA": "tab:orange", "TSR + CSA": "tab:green", "EW": "tab:gray"}
"""Which regularisers a method has, and its colour everywhere."""
DASHES: dict[str, Literal["encoder", "all"]] = {"-": "encoder", "--": "all"}
"""What the regularisers move."""


def kind(method: Method) -> str:
    """Which regularisers a method has.

    Args:
        method: the method.

    Returns:
        A key of `KINDS`.
    """
    terms = [term for term, lam in (("TSR", method.lam_tsr), ("CSA", method.lam_csa)) if lam]
    return " + ".join(terms) or "EW"


def draw_gains(results: Results) -> Figure:
    """The gain of every method with regularisers, its interval and the seeds.

    Args:
        results: of part A.

    Returns:
        The figure.
    """
    methods = [method for method in results if kind(method) != "EW"]
    figure = Figure(figsize=(8.0, 1.2 + 0.27 * len(methods)), layout="constrained")
    axis = figure.subplots()
    for height, method in enumerate(methods):
        values = gains(results, method)
        estimate, low, high, _ = mean_interval(values)
        colour = KINDS[kind(method)]
        axis.plot(values, np.full(len(values), height), ".", color=colour, alpha=0.25, markeredgewidth=0)
        axis.errorbar(
            estimate, height, xerr=[[estimate - low], [high - estimate]], fmt="o", color=colour, capsize=3
        )
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(methods)), [method.name for method in methods])
    axis.set_ylim(len(methods) - 0.5, -0.5)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("gain in mean test accuracy over the same without regularisers (points; right is better)")
    return figure


def draw_sweep(parts: Mapping[str, Results]) -> Figure:
    """The gain against the weights of the regularisers.

    Args:
        parts: title to results.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10.0, 4.0), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, (title, results) in zip(axes, parts.items(), strict=True):
        for dash, reach in DASHES.items():
            for place, name in enumerate(("TSR", "CSA", "TSR + CSA")):
                swept = [m for m in results if kind(m) == name and m == _swept(m) and m.reg_grad_to == reach]
                aside = 1.04 ** (place - 1)  # so that intervals do not hide each other
                curve = {aside * max(m.lam_tsr, m.lam_csa): gains(results, m) for m in swept}
                _line(axis, curve, KINDS[name], dash)
        axis.axhline(0, color="black", linewidth=1)
        axis.axvspan(SAFE[0], SAFE[-1], color="tab:gray", alpha=0.15, linewidth=0)
        axis.set_xscale("log")
        ticks = sorted({m.lam_tsr for m in results if m.lam_tsr in (0.03, 0.1, 0.3, 0.9, 3.0)})
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set(
            title=title, xlabel="weight λ of the regularisers", ylabel="gain over equal weights (points)"
        )
        axis.grid(alpha=0.3)
    handles = [Line2D([], [], color=KINDS[name], label=name) for name in ("TSR", "CSA", "TSR + CSA")]
    handles += [
        Line2D([], [], color="black", linestyle="-", label="moves the encoder"),
        Line2D([], [], color="black", linestyle="--", label="moves the heads too"),
        Patch(color="tab:gray", alpha=0.15, label="the paper's safe range"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False)
    return figure


def draw_saliencies(office: Results, digits: Results, title: str) -> Figure:
    """Entropy and similarities over the training.

    Args:
        office: part A.
        digits: part B.
        title: of part A.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(12.5, 3.8), layout="constrained")
    entropy, positive, negative = figure.subplots(1, 3)
    lams = sorted({m.lam_tsr for m in office if m == Method(m.lam_tsr)})
    shades = np.linspace(0.25, 1.0, len(lams))
    for lam, shade in zip(lams, shades, strict=True):
        colour = (*(1 - shade * (1 - np.array([0.12, 0.47, 0.71]))), 1.0) if lam else "tab:gray"
        _band(entropy, office[Method(lam)]["entropy"], colour, "-", f"TSR {lam:g}" if lam else "EW")
    tasks = office[EW]["accuracy"].shape[1]
    entropy.axhline(np.log(tasks), color="black", linestyle=":", linewidth=1)
    entropy.annotate(
        f"log {tasks}", (1, np.log(tasks)), xycoords=("axes fraction", "data"), xytext=(-4, -12),
        textcoords="offset points", ha="right",
    )  # fmt: skip
    entropy.set(title=title, ylabel="entropy of the saliency (nats)", ylim=(0, None))
    shown = (EW, WITHOUT_CSA, Method(0.0, WITH_CSA.lam_csa), WITH_CSA)
    for axis, name in ((positive, "positive"), (negative, "negative")):
        for dash, reach in DASHES.items():
            for method in (replace(m, reg_grad_to=reach) for m in shown):
                if method in digits:
                    _band(axis, digits[method][name], KINDS[kind(method)], dash, method.name)
        axis.set(title="overlapping digits", ylabel=f"similarity of the {name}s (cosine)")
    for axis in (entropy, positive, negative):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    entropy.legend(fontsize=8, frameon=False)
    figure.legend(
        *positive.get_legend_handles_labels(), loc="outside lower right", ncols=7, fontsize=8, frameon=False
    )
    return figure


def draw_exponents(office: Results, names: Sequence[str]) -> Figure:
    """The power-law exponents of the encoder and of the heads.

    Args:
        office: part A.
        names: of its domains.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(8.0, 3.8), layout="constrained")
    axis = figure.subplots()
    methods = (EW, TSR, CSA, FULL)
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        heads = office[method]["heads"]
        layers = [office[method]["encoder"], *heads.T]
        for place, values in enumerate(layers):
            estimate, low, high, _ = mean_interval(values[np.isfinite(values)])
            axis.bar(
                place + (number - 1.5) * width,
                estimate,
                width,
                yerr=[[estimate - low], [high - estimate]],
                color=KINDS[kind(method)],
                capsize=2,
                label=method.name if place == 0 else None,
            )
    axis.axhspan(*HEALTHY, color="black", alpha=0.08, linewidth=0, zorder=0)
    axis.annotate("well trained, says the paper", (0.995, HEALTHY[1]), xycoords=("axes fraction", "data"),
                  xytext=(0, -11), textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
    axis.set_xticks(range(1 + len(names)), ["encoder", *(f"head of {name}" for name in names)])
    axis.set_ylabel("power-law exponent α")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _swept(method: Method) -> Method:
    """What the method would be in a sweep: both weights alike, all else as in the paper."""
    weight = max(method.lam_tsr, method.lam_csa)
    return Method(
        weight if method.lam_tsr else 0.0, weight if method.lam_csa else 0.0, reg_grad_to=method.reg_grad_to
    )


def _line(axis: Axes, curve: Mapping[float, np.ndarray], colour: str, dash: str) -> None:
    if curve:
        weights = sorted(curve)
        estimates, lows, highs, _ = np.array([mean_interval(curve[weight]) for weight in weights]).T
        axis.errorbar(
            weights, estimates, yerr=[estimates - lows, highs - estimates], fmt="o", markersize=4,
            linestyle=dash, color=colour, capsize=2,
        )  # fmt: skip


def _band(axis: Axes, found: np.ndarray, colour: object, dash: str, label: str) -> None:
    estimates, lows, highs, _ = np.array([mean_interval(values) for values in found.T]).T
    steps = EVERY * np.arange(1, len(estimates) + 1)
    axis.plot(steps, estimates, dash, color=colour, label=label)  # pyright: ignore[reportArgumentType]
    axis.fill_between(steps, lows, highs, color=colour, alpha=0.2, linewidth=0)  # pyright: ignore
