"""The figures of the NegToMe experiment: means over seeds, with their 95 % intervals shaded."""

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from experiments.claims import mean_interval
from experiments.neg_tome.claims import (
    ALPHAS,
    DIVERSITY,
    GUIDANCES,
    GUIDED,
    Values,
    away,
    column,
    first,
    others,
    plain,
)
from experiments.neg_tome.sampling import Setting
from experiments.run_dir import RunDir

ARMS = {
    "none": (plain, "#666666"),
    "first image": (first, "#c2792b"),
    "other images": (others, "#2166ac"),
}
"""How settings at a CFG scale are made, and their colour."""

SHOWN = {
    "none": plain(),
    "first image": first(),
    "other images, α 2": others(),
    "other images, all steps": others(alpha=0.9, t_end=0.0),
}
"""Settings of part A whose samples are drawn."""

AVOIDED = {"none": plain(), "α 2, t ≥ 600": away(2.0), "α 2, all steps": away(2.0, 0.0)}
"""Settings of part B whose samples are drawn."""

Images = Float[np.ndarray, "settings rows columns 8 8"]


def draw_diversity(run_dir: RunDir, values: Values) -> None:
    """Similarity, Vendi score and Fréchet distance against the scale of guidance."""
    panels = {
        "similarity": "similarity of a prompt's images",
        "vendi": "Vendi score of a prompt's images",
        "frechet": "Fréchet distance to the data",
    }
    figure, row = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axis, (name, title) in zip(row, panels.items(), strict=True):
        for arm, (setting, colour) in ARMS.items():
            found = column(values, DIVERSITY, name, [setting(g) for g in GUIDANCES])
            _draw_line(axis, GUIDANCES, found, colour, arm)
        axis.set(xlabel="scale of classifier-free guidance", title=title, xticks=GUIDANCES)
    row[0].legend(frameon=False)
    run_dir.figure(
        "diversity",
        figure,
        "Part A: how similar the four images of a prompt are in pixels (left; lower is more diverse), their"
        " effective number in a classifier's features (middle), and how far all images are from the data"
        " (right), against the scale of guidance. Mean over seeds, 95 % interval shaded.",
    )


def draw_likeness(run_dir: RunDir, values: Values) -> None:
    """Similarity to the reference against the strength."""
    figure, axis = plt.subplots(figsize=(5.5, 3.8), layout="constrained")
    for name, t_end, colour in (("t ≥ 600", 600.0, "#c2792b"), ("all steps", 0.0, "#2166ac")):
        settings = [plain(), *(away(alpha, t_end) for alpha in ALPHAS)]
        found = column(values, GUIDED, "similarity", settings)
        _draw_line(axis, (0.0, *ALPHAS), found, colour, name)
    axis.set(xlabel="strength α", ylabel="cosine to the reference, pixels")
    axis.legend(frameon=False)
    run_dir.figure(
        "likeness",
        figure,
        "Part B: similarity of generated digits to the reference that they are pushed away from, the medoid"
        " of their class. Mean over seeds, 95 % interval shaded.",
    )


def draw_images(run_dir: RunDir, groups: Images, avoiding: Images, references: np.ndarray) -> None:
    """Samples of the first seed.

    Args:
        run_dir: where they go.
        groups: of ``SHOWN``; a row for each prompt.
        avoiding: of ``AVOIDED``; a row for each class.
        references: of the classes ``[rows, 8, 8]``.
    """
    figure, row = plt.subplots(1, len(SHOWN), figsize=(3 * len(SHOWN), 7.5), layout="constrained")
    for axis, name, images in zip(row, SHOWN, groups, strict=True):
        _show(axis, images, name)
    run_dir.figure(
        "diverse_digits",
        figure,
        "Part A: digits of the first seed at CFG 3 from the same noise; a row holds the four images of one"
        " prompt, of which the first stays as it is where it is the reference.",
    )
    figure, row = plt.subplots(
        1,
        1 + len(AVOIDED),
        figsize=(3 * len(AVOIDED) + 1.2, 7.5),
        layout="constrained",
        width_ratios=[1, *[4] * len(AVOIDED)],
    )
    _show(row[0], references[:, None], "reference")
    for axis, name, images in zip(row[1:], AVOIDED, avoiding, strict=True):
        _show(axis, images, name)
    run_dir.figure(
        "avoided_digits",
        figure,
        "Part B: the digit that is avoided (left), and digits of the first seed at CFG 3, from the same"
        " noise.",
    )


def columns_of(names: dict[Setting, str], shown: dict[str, Setting]) -> list[int]:
    """Where the settings that are drawn stand among all."""
    order = list(names)
    return [order.index(setting) for setting in shown.values()]


def _draw_line(axis: Axes, x: tuple[float, ...], values: np.ndarray, colour: str, label: str) -> None:
    means, lows, highs, _ = np.array([mean_interval(of_point) for of_point in values.T]).T
    axis.plot(x, means, "o-", color=colour, label=label, markersize=4)
    if np.isfinite(lows).all():
        axis.fill_between(x, lows, highs, color=colour, alpha=0.15, linewidth=0)


def _show(axis: Axes, images: Float[np.ndarray, "rows columns 8 8"], title: str) -> None:
    framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.5)
    rows, columns, height, width = framed.shape
    axis.imshow(framed.swapaxes(1, 2).reshape(rows * height, columns * width), cmap="gray_r", vmin=-1, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
