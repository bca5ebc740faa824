"""Two losses of two parameters whose Pareto set is known, and what each method does there.

With ``t = tanh``, for a point ``(x1, x2)``:

    f1 = log max(|0.5 (-x1 - 7) - t(-x2)|, 5e-6) + 6        h1 = ((-x1 + 7)^2 + 0.1 (-x2 - 8)^2) / 10 - 20
    f2 = log max(|0.5 (-x1 + 3) + t(-x2) + 2|, 5e-6) + 6    h2 = ((-x1 - 7)^2 + 0.1 (-x2 - 8)^2) / 10 - 20
    c1 = max(t(0.5 x2), 0)                                  c2 = max(t(-0.5 x2), 0)
    L1 = scale (f1 c1 + h1 c2)                              L2 = f2 c1 + h2 c2

The gradients conflict along two narrow valleys where x2 > 0. The papers draw the Pareto set as the segment
x2 = -8.3552, -7 <= x1 <= 7; with scale 1 the mean loss is least in its middle, -15.0917.

Sources: CAGrad, arXiv:2110.14048, Figure 1 (setting A); Nash-MTL, arXiv:2202.01017, Figure 1 (setting B);
FAMO, arXiv:2306.03792, Section 5.1 and Figure 1 (setting C).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.mtl_reweighting.float64 import float64_on_cpu
from experiments.mtl_reweighting.methods import weighted_step
from experiments.parallel import in_parallel
from experiments.run_dir import RunDir, Table
from jaxneg.train import init_state

PARETO_X2 = -8.3552
"""The x2 of the Pareto set that the papers draw."""
PARETO_X1 = 7.0
"""It ends at x1 = -7 and x1 = 7, where one of the two losses is least."""
OPTIMUM_MEAN_LOSS = -15.0917
"""The least mean loss with scale 1, at (0, -8.3552)."""


class Setting(NamedTuple):
    """How one paper runs the problem."""

    paper: str
    scale: float
    """Factor of the first loss."""
    steps: int
    """Adam steps in the paper."""
    inits: tuple[tuple[float, float], ...]
    """Points to start from."""


SETTINGS = {
    "A": Setting("CAGrad", 1.0, 100_000, ((-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0))),
    "B": Setting("Nash-MTL", 0.1, 50_000, ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))),
    "C": Setting("FAMO", 0.1, 50_000, ((-8.5, 7.5), (-8.5, 5.0), (0.0, 0.0), (9.0, 9.0), (10.0, -8.0))),
}

METHODS = (
    "Sum",
    "MGDA",
    "PCGrad",
    "GradVac",
    "CAGrad c=0.4",
    "CAGrad c=0.5",
    "IMTL-G",
    "Nash-MTL",
    "FairGrad α=2",
    "FAMO",
    "Aligned-MTL",
    "ConFIG",
    "UPGrad",
    "DualProj",
)


def task_losses(x: Float[Array, "2"], scale: float | Float[Array, ""] = 1.0) -> Float[Array, "2"]:
    """The two losses, as the opening of this file has them.

    At x2 = 0 both c1 and c2 pass the gradient on, as a clamp does and a maximum does not.

    Args:
        x: the point ``(x1, x2)``.
        scale: factor of the first loss.

    Returns:
        ``[L1, L2]``.

    Example:
        >>> import jax.numpy as jnp
        >>> [round(float(loss), 2) for loss in task_losses(jnp.array([0.0, -8.3552]))]
        [-15.09, -15.09]
    """
    x1, x2 = x
    f1 = jnp.log(jnp.maximum(jnp.abs(0.5 * (-x1 - 7) - jnp.tanh(-x2)), 5e-6)) + 6
    f2 = jnp.log(jnp.maximum(jnp.abs(0.5 * (-x1 + 3) + jnp.tanh(-x2) + 2), 5e-6)) + 6
    h1 = ((-x1 + 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    h2 = ((-x1 - 7) ** 2 + 0.1 * (-x2 - 8) ** 2) / 10 - 20
    c1, c2 = _clamp_at_zero(jnp.tanh(0.5 * x2)), _clamp_at_zero(jnp.tanh(-0.5 * x2))
    return jnp.stack([scale * (f1 * c1 + h1 * c2), f2 * c1 + h2 * c2])


def descent(method: str, scale: float, steps: int, every: int = 1) -> Callable:
    """Adam on what a method makes of the two gradients.

    As in the released toys, the gradients of MGDA and CAGrad are multiplied by the number of tasks (which
    only Adam's epsilon sees), FAMO's is clipped to norm 1, its logits do not decay, and its losses count
    from -21 (times the scale), below which neither falls.

    Args:
        method: of `METHODS`.
        scale: factor of the first loss.
        steps: Adam steps, a multiple of ``every``.
        every: steps between recorded points.

    Returns:
        ``points [inits, 2] -> paths [inits, steps / every + 1, 2]``, which begin with the points.
    """
    options: dict[str, Any] = {}
    if method.startswith(("MGDA", "CAGrad")):
        options = {"before_adam": optax.scale(2.0)}
    elif method == "FAMO":
        least = jnp.array([-21.0 * scale, -21.0])
        options = {"before_adam": optax.clip_by_global_norm(1.0), "gamma": 0.0, "min_losses": least}
    step, transform = weighted_step(lambda x, _: task_losses(x, scale), method, 2, **options)

    def one(x: Float[Array, "2"]) -> Float[Array, "points 2"]:
        def several(state, _):
            state = jax.lax.fori_loop(0, every, lambda _, s: step(s, ())[0], state)
            return state, state.params

        state = init_state(x, transform, jax.random.key(0))
        return jnp.concatenate([x[None], jax.lax.scan(several, state, length=steps // every)[1]])

    return jax.jit(jax.vmap(one))


def reached(x: Float[np.ndarray, "*points 2"]) -> np.ndarray:
    """Whether points lie on the Pareto set that the papers draw, to 0.1."""
    return (np.abs(x[..., 1] - PARETO_X2) < 0.1) & (np.abs(x[..., 0]) < PARETO_X1 + 0.1)


def starts(setting: Setting, seeds: int, jitter: float) -> Float[np.ndarray, "seeds+1 inits 2"]:
    """The paper's starting points, and for each seed the same points moved by normal noise.

    Nothing in the problem is random; the noise says whether an outcome belongs to the problem or to the
    exact point.

    Args:
        setting: whose points.
        seeds: number of moved copies.
        jitter: standard deviation of the noise in each coordinate.

    Returns:
        The exact points first, then one set for each seed.
    """
    exact = np.asarray(setting.inits)
    noise = [np.random.default_rng(seed).normal(size=exact.shape) for seed in range(seeds)]
    return np.stack([exact, *(exact + jitter * n for n in noise)])


CLAIMED = {
    "A": ("Sum", "MGDA", "PCGrad", "CAGrad c=0.5"),
    "B": ("Sum", "MGDA", "PCGrad", "CAGrad c=0.4", "IMTL-G", "Nash-MTL"),
    "C": ("Sum", "FAMO"),
}
"""The methods on which a claim is measured, over moved starting points, in each setting."""
FEWEST = {"A": ("Sum", "PCGrad", "CAGrad c=0.5"), "B": ("Sum", "IMTL-G"), "C": CLAIMED["C"]}
"""Those without which a claim has nothing to compare."""


class Descents(NamedTuple):
    """What one method does in one setting."""

    paths: Float[np.ndarray, "inits points 2"]
    """From the exact starting points."""
    ends: Float[np.ndarray, "seeds inits 2"]
    """From the moved starting points; no seeds where no claim is measured."""


def steps_of(key: str, steps: int) -> int:
    """The Adam steps of a setting, if setting A takes ``steps``: in the papers 100,000 and 50,000."""
    return steps * SETTINGS[key].steps // SETTINGS["A"].steps


def run_toy(
    steps: int, seeds: int, jitter: float, all_methods: bool, run_dir: RunDir
) -> dict[str, dict[str, Descents]]:
    """Runs every method in every setting, in float64, as many at once as there are cores.

    Args:
        steps: Adam steps in setting A, a multiple of 1000; B and C take half of them.
        seeds: copies of the starting points moved by noise, where a claim is measured.
        jitter: standard deviation of that noise.
        all_methods: whether to run every method, or the fewest that the claims need.
        run_dir: keeps what is done.

    Returns:
        Setting and method to what it did.
    """
    # Settings B and C differ in their starting points alone: one call runs both.
    jobs = [
        (keys, method)
        for method in METHODS
        for keys in (("A",), ("B", "C"))
        if all_methods or any(method in FEWEST[key] for key in keys)
    ]

    def run(job: tuple[tuple[str, ...], str]) -> dict[str, np.ndarray]:
        keys, method = job
        name = f"toy-{''.join(keys)}-{METHODS.index(method)}"
        length = steps_of(keys[0], steps)
        return run_dir.stage(name, lambda: _run_settings(keys, method, length, seeds, jitter))

    results: dict[str, dict[str, Descents]] = {key: {} for key in SETTINGS}
    found = in_parallel(run, jobs, run_dir, "Toy of two losses")
    for (keys, method), arrays in zip(jobs, found, strict=True):
        for key in keys:
            results[key][method] = Descents(arrays[f"{key}_paths"], arrays[f"{key}_ends"])
    return results


def _run_settings(
    keys: tuple[str, ...], method: str, steps: int, seeds: int, jitter: float
) -> dict[str, np.ndarray]:
    begin = {key: starts(SETTINGS[key], seeds if method in CLAIMED[key] else 0, jitter) for key in keys}
    with float64_on_cpu():
        run = descent(method, SETTINGS[keys[0]].scale, steps, every=max(1, steps // 500))
        paths = np.asarray(run(jnp.concatenate([points.reshape(-1, 2) for points in begin.values()])))
    arrays, first = {}, 0
    for key, points in begin.items():
        count = points[..., 0].size
        of_key = paths[first : first + count].reshape(*points.shape[:2], *paths.shape[1:])
        arrays |= {f"{key}_paths": of_key[0], f"{key}_ends": of_key[1:, :, -1]}
        first += count
    return arrays


REFERENCE = {
    ("A", "Sum"): "1 of 3; mean loss 2.41, -15.09, 2.72",
    ("A", "MGDA"): "3 of 3; mean loss -13.99, -10.21, -14.00",
    ("A", "PCGrad"): "3 of 3; mean loss -14.02, -10.95, -14.06",
    ("A", "CAGrad c=0.5"): "3 of 3; mean loss -15.092 three times",
    ("A", "IMTL-G"): "3 of 3",
    ("A", "Nash-MTL"): "3 of 3; mean loss -14.25, -11.08, -14.25",
    ("A", "FAMO"): "3 of 3; mean loss -15.09, -14.29, -15.08",
    ("B", "Sum"): "4 of 5; x1 -5.73 four times, (5.00, 3.91)",
    ("B", "MGDA"): "5 of 5; x1 -1.92, 6.10, 6.98, -4.26, 7.00",
    ("B", "PCGrad"): "4 of 5; x1 -4.35, -3.35, (6.78, -0.12), -3.82, 5.03",
    ("B", "CAGrad c=0.4"): "4 of 5; x1 -5.73 four times, (6.28, 0.35)",
    ("B", "CAGrad c=0.5"): "4 of 5",
    ("B", "IMTL-G"): "5 of 5; x1 -2.30, 0, 2.43, -3.39, 5.30",
    ("B", "Nash-MTL"): "5 of 5; x1 -2.93, 0, 2.93, -3.27, 4.90",
    ("B", "FAMO"): "5 of 5; x1 -0.49, 0.08, 0.34, -0.95, 1.76",
}
"""The papers show pictures; an independent float64 run of the official definitions ends here."""


def excess(x: Float[np.ndarray, "*points 2"]) -> np.ndarray:
    """How far the mean loss with scale 1 lies above its least value on the Pareto set.

    Args:
        x: points.

    Returns:
        Mean loss minus `OPTIMUM_MEAN_LOSS`, one number for each point.
    """
    return _values(x, 1.0).mean(axis=-1) - OPTIMUM_MEAN_LOSS


def outcome_table(key: str, descents: dict[str, Descents]) -> Table:
    """The ends that every method reaches from a paper's own starting points.

    Args:
        key: of `SETTINGS`.
        descents: method to what it did.

    Returns:
        The table, with the reference run beside ours.
    """
    setting = SETTINGS[key]
    rows: list[list[str | float | int]] = []
    for method, descent in descents.items():
        ends = descent.paths[:, -1]
        mean_losses = _values(ends, setting.scale).mean(axis=-1)
        rows.append(
            [
                method,
                f"{reached(ends).sum()} of {len(ends)}",
                "  ".join(f"({x1:.2f}, {x2:.2f})" for x1, x2 in ends),
                "  ".join(f"{loss:.2f}" for loss in mean_losses),
                REFERENCE.get((key, method), ""),
            ]
        )
    inits = "  ".join(f"({x1:g}, {x2:g})" for x1, x2 in setting.inits)
    return Table(
        f"Toy, setting {key} ({setting.paper}, scale {setting.scale:g}), from {inits}",
        ["method", "reached", "end points (x1, x2)", "mean losses", "reference run"],
        rows,
    )


def draw(key: str, descents: dict[str, Descents], steps: int) -> Figure:
    """The paths of every method over the contours of the mean loss, as the papers draw them.

    Args:
        key: of `SETTINGS`.
        descents: method to what it did.
        steps: Adam steps that it took.

    Returns:
        The figure.
    """
    setting = SETTINGS[key]
    columns = min(5, len(descents))
    lines = -(-len(descents) // columns)
    figure = Figure(figsize=(2.7 * columns + 1.5, 2.7 * lines + 0.8), layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    grid = np.linspace(-11, 11, 200)
    x1, x2 = np.meshgrid(grid, grid)
    height = _values(np.stack([x1, x2], axis=-1), setting.scale).mean(axis=-1)
    least = x1.flat[height.argmin()], x2.flat[height.argmin()]
    for axis, (method, descent) in zip(axes.flat, descents.items(), strict=False):
        contours = axis.contourf(x1, x2, height, levels=24, cmap="Greys_r", alpha=0.75)
        axis.plot([-PARETO_X1, PARETO_X1], [PARETO_X2] * 2, color="tab:blue", linewidth=4, alpha=0.6)
        axis.plot(*least, "*", color="gold", markeredgecolor="black", markersize=12)
        for path in descent.paths:
            axis.plot(*path.T, color="tab:red", linewidth=0.7)
            taken = np.linspace(0, steps, len(path))[1:]
            shade = LogNorm(taken[0], steps)
            points = axis.scatter(
                *path[1:].T, c=taken, s=5, cmap="autumn", norm=shade, linewidths=0, zorder=3
            )
            axis.plot(*path[0], "o", color="white", markeredgecolor="black", markersize=6)
        done = reached(descent.paths[:, -1])
        for end, on_set in zip(descent.paths[:, -1], done, strict=True):
            color = "tab:green" if on_set else "tab:red"
            axis.plot(*end, "X", color=color, markeredgecolor="black", markersize=9, zorder=5)
        axis.set_title(f"{method}: {done.sum()} of {len(done)}", fontsize=11)
    for axis in axes.flat[len(descents) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("$x_1$")
    for axis in axes[:, 0]:
        axis.set_ylabel("$x_2$")
    figure.colorbar(points, ax=axes, label="Adam step", shrink=0.6, pad=0.01)
    figure.colorbar(contours, ax=axes, label="mean of the two losses", shrink=0.6, pad=0.01)
    edge: dict[str, Any] = {"markeredgecolor": "black", "linestyle": ""}
    handles = [
        Line2D([], [], marker="o", color="white", markersize=6, label="start", **edge),
        Line2D([], [], marker="X", color="tab:green", markersize=9, label="end on the Pareto set", **edge),
        Line2D([], [], marker="X", color="tab:red", markersize=9, label="end elsewhere", **edge),
        Line2D([], [], color="tab:blue", linewidth=4, alpha=0.6, label="Pareto set"),
        Line2D([], [], marker="*", color="gold", markersize=12, label="least mean loss", **edge),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    return figure


def _values(x: Float[np.ndarray, "*points 2"], scale: float) -> Float[np.ndarray, "*points 2"]:
    """The two losses at many points, in float64."""
    with float64_on_cpu():
        values = _losses_at(jnp.asarray(x).reshape(-1, 2), scale)
    return np.asarray(values).reshape(x.shape)


@jax.jit
def _losses_at(points: Float[Array, "points 2"], scale: Float[Array, ""]) -> Float[Array, "points 2"]:
    return jax.vmap(task_losses, (0, None))(points, scale)


def _clamp_at_zero(value: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(value >= 0, value, 0.0)
