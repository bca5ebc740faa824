"""How exactly the fixed points of Nash-MTL and FairGrad are solved on hard Jacobians.

Both methods ask for positive task weights with ``(G w)_t = w_t^(-1/alpha)``, ``G = J J^T``; Nash-MTL is
``alpha = 1``. The residual ``max_t |w_t^(1/alpha) (G w)_t - 1|`` says how far an answer is from that.
The solvers in use fail on three kinds of Jacobian: gradient norms as 1e-2 : 1 : 1e2, three identical
gradients, and gradients of norm 1e-6.

Sources: Nash-MTL, arXiv:2202.01017, Section 3.2; FairGrad, arXiv:2402.15638, Section 4.2.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from experiments.mtl_reweighting.float64 import float64_on_cpu
from experiments.run_dir import Table
from jaxneg.mtl import fairgrad, gram, nash

TASKS, PARAMETERS = 3, 12

CASES = {
    "scaled": "norms 1e-2 : 1 : 1e2",
    "identical": "three equal gradients",
    "tiny": "norms of 1e-6",
}
"""Kind of Jacobian and what is hard about it."""

PEERS = {
    ("scaled", "Nash-MTL"): "0.99 to 8e3",
    ("identical", "Nash-MTL"): "23",
    ("tiny", "Nash-MTL"): "1",
    ("scaled", "FairGrad α=2"): "0.27",
    ("tiny", "FairGrad α=2"): "1",
}
"""What torchjd 0.18.0 leaves on such Jacobians, with ECOS for Nash-MTL and SciPy for FairGrad."""

SOLVERS: dict[str, tuple[Callable, float]] = {
    "Nash-MTL": (nash, 1.0),
    "FairGrad α=2": (lambda G: fairgrad(G, alpha=2.0), 2.0),
}
"""Method to its weights from a Gram matrix, and alpha."""


def hard_jacobian(case: str, seed: int) -> Float[np.ndarray, "tasks parameters"]:
    """A Jacobian of one of the `CASES`.

    Args:
        case: which.
        seed: of its standard normal numbers.

    Returns:
        One gradient in each row, float64.

    Raises:
        ValueError: there is no such case.
    """
    normal = np.random.default_rng(seed).normal(size=(TASKS, PARAMETERS))
    if case == "scaled":
        return normal * np.array([[1e-2], [1.0], [1e2]])
    if case == "identical":
        return np.repeat(normal[:1], TASKS, axis=0)
    if case == "tiny":
        return normal * 1e-6
    raise ValueError(f"case: expected one of {', '.join(CASES)}, got {case!r}")


def residual(J: Float[np.ndarray, "tasks parameters"], w: Float[np.ndarray, "tasks"], alpha: float) -> float:
    """``max_t |w_t^(1/alpha) (J J^T w)_t - 1|`` in float64, whatever the weights were computed in.

    Args:
        J: one gradient in each row.
        w: positive task weights.
        alpha: FairGrad's exponent, 1 for Nash-MTL.

    Returns:
        The residual.
    """
    J, w = J.astype(np.float64), np.asarray(w, np.float64)
    return float(np.max(np.abs(w ** (1 / alpha) * (J @ (J.T @ w)) - 1)))


def residuals(seeds: int, dtype: type) -> dict[tuple[str, str], Float[np.ndarray, "seeds"]]:
    """The residuals of our solvers on every case.

    Args:
        seeds: Jacobians of each case.
        dtype: float64 or float32: in what the Gram matrix and the weights are computed.

    Returns:
        ``(case, method)`` to one residual for each seed.
    """
    found = {}
    with float64_on_cpu():  # float32 arrays stay float32
        for method, (solve, alpha) in SOLVERS.items():
            weights = jax.jit(jax.vmap(lambda J, solve=solve: solve(gram(J))))
            for case in CASES:
                jacobians = np.stack([hard_jacobian(case, seed) for seed in range(seeds)]).astype(dtype)
                found[case, method] = np.array(
                    [residual(J, w, alpha) for J, w in zip(jacobians, weights(jacobians), strict=True)]
                )
    return found


def residual_table(found: dict[str, dict[tuple[str, str], np.ndarray]]) -> Table:
    """The worst residual of every case and method.

    Args:
        found: precision to what `residuals` found in it.

    Returns:
        The table, with the peer's residuals beside ours.
    """
    precisions = list(found)
    rows: list[list[str | float | int]] = [
        [
            f"{case}: {CASES[case]}",
            method,
            *(f"{found[precision][case, method].max():.1e}" for precision in precisions),
            PEERS.get((case, method), "not reported"),
        ]
        for case in CASES
        for method in SOLVERS
    ]
    return Table(
        "Solver accuracy: greatest residual max_t |w_t^(1/alpha) (G w)_t - 1| over the Jacobians",
        ["Jacobian", "method", *(f"ours, {precision}" for precision in precisions), "torchjd 0.18.0"],
        rows,
    )


def draw(found: dict[str, dict[tuple[str, str], np.ndarray]]) -> Figure:
    """The residual of every Jacobian.

    Args:
        found: precision to what `residuals` found in it.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axis = figure.subplots()
    rows = [(case, method) for case in CASES for method in SOLVERS]
    for precision, color in zip(found, ("tab:blue", "tab:orange"), strict=True):
        for height, row in enumerate(rows):
            values = np.maximum(found[precision][row], np.finfo(np.float64).eps / 2)
            label = f"ours, {precision}" if height == 0 else None
            axis.plot(
                values, np.full(len(values), height), "o", color=color, alpha=0.5, markersize=6, label=label
            )
    for height, row in enumerate(rows):
        if row in PEERS:
            ends = [float(end) for end in PEERS[row].split(" to ")]
            label = "torchjd 0.18.0, reported" if height == 0 else None
            axis.plot(ends, [height] * len(ends), "D-", color="tab:red", markersize=6, label=label)
    axis.axvline(1e-10, color="black", linestyle=":", linewidth=1)
    axis.text(1e-10, -0.75, " claim: below 1e-10 in float64", fontsize=9, va="center")
    axis.set_xscale("log")
    axis.set_yticks(range(len(rows)), [f"{method}, {case}" for case, method in rows])
    axis.set_ylim(len(rows) - 0.5, -1.1)
    axis.set_xlabel(r"residual $\max_t\,|w_t^{1/\alpha}(Gw)_t - 1|$ (no unit)")
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, frameon=False)
    return figure
