"""The figures of the Perp-Neg experiments: means over seeds, with their 95 % intervals shaded."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.patches import Patch

from experiments.claims import mean_interval
from experiments.perp_neg.janus import AZIMUTHS, FACES, METHODS, Views, true_faces
from experiments.perp_neg.overlap import ATTRIBUTE_LENGTH, CONCEPTS, Scores, Setting, axes
from experiments.run_dir import RunDir
from jaxneg.diffusion import view_weights

COLOURS = {"CFG": "#666666", "plain negative": "#c2792b", "CEBM": "#b2182b", "Perp-Neg": "#2166ac"}
SEEN = {"front": "#e08214", "side": "#5aae61", "back": "#542788", "another concept": "#dddddd"}


def draw_success(run_dir: RunDir, settings: Sequence[Setting], scores: Scores) -> None:
    """Kept concept, success and distance against the weight of the negative prompt."""
    panels = (
        ("concept kept", scores.concept),
        ("requested view of the concept", scores.joint),
        ("distance to the data", scores.distance),
    )
    figure, row = plt.subplots(1, 3, figsize=(14, 4), layout="constrained")
    longest = max(setting.weight for setting in settings)
    for axis, (title, values) in zip(row, panels, strict=True):
        for rule, colour in COLOURS.items():
            found = [(s.weight, of) for s, of in zip(settings, values, strict=True) if s.rule == rule]
            weights = np.array([weight for weight, _ in found])
            means, lows, highs, _ = np.array([mean_interval(of) for _, of in found]).T
            if len(found) == 1:
                weights, means, lows, highs = (
                    np.array([0, longest]),
                    *(np.repeat(x, 2) for x in (means, lows, highs)),
                )
            axis.plot(
                weights, means, "--" if len(found) == 1 else "o-", color=colour, label=rule, markersize=4
            )
            if np.isfinite(lows).all():
                axis.fill_between(weights, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axis.set(xlabel="weight of the negative prompt", title=title, xlim=(0, longest))
    row[0].set(ylabel="share of the samples", ylim=(-0.02, 1.04))
    row[1].set(ylim=(-0.02, 1.04))
    row[2].set(ylim=(0.8, 4), ylabel="median, over σ√D")
    row[2].axhline(1, color="k", linewidth=0.5)
    row[0].legend(frameon=False)
    run_dir.figure(
        "success_against_weight",
        figure,
        "Success against the weight of the negative prompt, mean over seeds, 95 % interval shaded. Perp-Neg"
        " keeps the concept at every weight (left) and shows the requested view the more often, the larger"
        " the weight (middle), at the price of leaving the data (right; 1 is on it). Compositional energies"
        " do better at small weights and have lost the concept at weight 1.",
    )


def draw_samples(
    run_dir: RunDir, settings: Sequence[Setting], found: np.ndarray, shown: Sequence[int]
) -> None:
    """Samples of the first seed along the two attributes, coloured by whether the concept is kept."""
    q = axes()
    figure, row = plt.subplots(
        1, len(shown), figsize=(3.4 * len(shown), 3.6), layout="constrained", sharex=True, sharey=True
    )
    for axis, index in zip(np.atleast_1d(row), shown, strict=True):
        points = found[index, 0]
        attributes = points @ q[CONCEPTS : CONCEPTS + 2].T
        kept = (points @ q[:CONCEPTS].T).argmax(-1) == 0
        for of, colour, label in ((kept, "#2166ac", "the concept"), (~kept, "#b2182b", "another")):
            axis.plot(*attributes[of].T, ".", color=colour, markersize=3, label=label)
        axis.plot(ATTRIBUTE_LENGTH, 0, "kx", 0, ATTRIBUTE_LENGTH, "k*", markersize=9)
        rule, weight = settings[index]
        axis.set(title=f"{rule}, weight {weight:g}" if weight else rule, xlabel="unwanted view")
        axis.axline((0, 0), slope=1, color="k", linewidth=0.5)
    np.atleast_1d(row)[0].set(ylabel="requested view", xlim=(-10, 5), ylim=(-4, 11))
    handles = [Patch(color="#2166ac", label="the concept"), Patch(color="#b2182b", label="another concept")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    run_dir.figure(
        "samples",
        figure,
        "Samples of the first seed along the two views; cross: mean of the unwanted view, star: of the"
        " requested one; above the line the requested view is nearer. Blue keeps the concept, red does not.",
    )


def draw_circle(run_dir: RunDir, views: Views) -> None:
    """Which face is seen from where; a ring for each seed, the truth around them."""
    colours = ListedColormap(list(SEEN.values()))
    norm = BoundaryNorm(np.arange(len(SEEN) + 1) - 0.5, len(SEEN))
    shown = np.where(views.concept == 0, views.face, FACES)
    half = np.deg2rad(np.diff(AZIMUTHS)[0] / 2)
    edges = np.append(np.deg2rad(AZIMUTHS) - half, np.deg2rad(AZIMUTHS[-1]) + half)
    figure, row = plt.subplots(
        1,
        len(METHODS),
        figsize=(3.4 * len(METHODS), 4),
        layout="constrained",
        subplot_kw={"projection": "polar"},
    )
    for axis, name, rings in zip(row, METHODS, shown, strict=True):
        seeds = len(rings)
        axis.pcolormesh(edges, 1 + np.arange(seeds + 1) / seeds, rings, cmap=colours, norm=norm)
        axis.pcolormesh(edges, [2.15, 2.35], true_faces()[None], cmap=colours, norm=norm)
        axis.set(
            theta_zero_location="S",
            ylim=(0, 2.35),
            yticks=[],
            xticks=np.deg2rad([0, 90, 180, 270]),
            title=name,
        )
        axis.set_xticklabels(["0° front", "90°", "180° back", "−90°"])
        axis.grid(False)
    handles = [Patch(color=colour, label=name) for name, colour in SEEN.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    run_dir.figure(
        "view_circle",
        figure,
        "What the trained object shows from every side, a ring for each seed; the narrow ring outside is what"
        " it should show. Without negative prompts it has a front on every side (Janus); with the negatives"
        " subtracted whole it turns into another concept; Perp-Neg shows front, sides and back.",
    )


def draw_schedules(run_dir: RunDir) -> None:
    """The weights of the two negative prompts around the object."""
    azimuth = np.linspace(-180, 179.5, 720)
    figure, row = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
    for axis, schedule in zip(row, ("dreamfusion", "threestudio"), strict=True):
        found = view_weights(azimuth.astype(np.float32), schedule=schedule)
        index, weights = (np.asarray(found[name]) for name in ("neg_index", "weights"))
        for view, name in enumerate(("front", "side")):
            axis.plot(azimuth, np.where(index == view, weights, 0).sum(1), color=SEEN[name], label=name)
        axis.set(xlabel="azimuth, degrees (0: front)", title=schedule, xticks=np.arange(-180, 181, 90))
    row[0].set(ylabel="weight of the negative prompt")
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    run_dir.figure(
        "view_weights",
        figure,
        "The weights of the negative prompts around the object in the two published schedules.",
    )
