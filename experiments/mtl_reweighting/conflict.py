"""How the tasks' gradients conflict over training: `jaxneg.mtl.ConflictStatistics` at every step, drawn.

The statistics are those of the shared parameters' Gram matrix on the training batch, before the method acts,
along the path on which the method leads the network. Conflicting gradients: Yu et al., arXiv:2001.06782.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.claims import mean_interval
from experiments.mtl_reweighting.delta import interval_text
from experiments.mtl_reweighting.methods import WATCHED
from experiments.run_dir import Table

Conflict = Mapping[str, Float[np.ndarray, "3 seeds steps"]]
"""Method to the fields of `jaxneg.mtl.ConflictStatistics` at every step."""
WINDOWS = 30
"""Points of a curve: the mean over so many stretches of training, of 5 steps at least."""


def averaged(
    values: Float[np.ndarray, "3 seeds steps"], windows: int
) -> Float[np.ndarray, "3 seeds windows"]:
    """The means over equal stretches of training; of the ratios of norms the geometric mean.

    Args:
        values: the fields of `jaxneg.mtl.ConflictStatistics`.
        windows: stretches; the last steps that fill none are left out.

    Returns:
        The same fields.

    Example:
        >>> import numpy as np
        >>> averaged(np.array([[[0.0, 1.0]], [[1.0, 1.0]], [[1.0, 100.0]]]), 1).round(3).tolist()
        [[[0.5]], [[1.0]], [[10.0]]]
    """
    length = values.shape[-1] // windows
    cut = values[..., : windows * length].reshape(*values.shape[:-1], windows, length)
    return np.stack([cut[0].mean(-1), cut[1].mean(-1), np.exp(np.log(cut[2]).mean(-1))])


def conflict_table(title: str, conflict: Conflict) -> Table:
    """The statistics averaged over the whole training.

    Args:
        title: of the problem.
        conflict: what was found.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for method, values in conflict.items():
        cosine, negative, ratio = averaged(values, 1)[..., 0]
        rows.append([method, interval_text(cosine, 2), interval_text(100 * negative), interval_text(ratio)])
    return Table(
        f"Conflict of the task gradients, {title}: mean over training (95 % interval over the seeds)",
        ["method", "mean cosine", "negative pairs, percent", "largest norm / smallest"],
        rows,
    )


def draw(conflict: Conflict, pairs: int) -> Figure:
    """Each statistic over training, a curve with its 95 % interval for each method.

    Args:
        conflict: what was found.
        pairs: of tasks.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    steps = next(iter(conflict.values())).shape[-1]
    windows = max(1, min(WINDOWS, steps // 5))
    middle = (np.arange(windows) + 0.5) * (steps // windows)
    for method, values in conflict.items():
        color = f"C{WATCHED.index(method)}"
        for axis, of_seeds in zip(axes, averaged(values, windows), strict=True):
            logs = axis is axes[2]
            ends = np.array(
                [mean_interval(point)[:3] for point in (np.log(of_seeds) if logs else of_seeds).T]
            )
            # Cosines and shares have bounds that Student's interval does not know.
            least = 0 if axis is axes[1] else -1
            mean, low, high = (np.exp(ends) if logs else ends.clip(least, 1)).T
            axis.fill_between(middle, low, high, color=color, alpha=0.2, linewidth=0)
            axis.plot(middle, mean, color=color, label=method)
    axes[0].axhline(0, color="black", linewidth=1)
    axes[1].set_ylim(-0.03, 1.03)
    axes[2].set_yscale("log")
    several = f"of the {pairs} pairs" if pairs > 1 else "of the steps"
    titles = (
        "mean cosine of two gradients",
        f"share {several} with a negative cosine",
        "largest norm / smallest",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("Adam step")
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
