"""How methods compare with their own weighting without regularisers, and with single-task networks."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.claims import mean_interval
from experiments.rep_mtl.training import TAU, Method
from experiments.run_dir import Table
from jaxneg.mtl import delta_p_task

STL, EW = Method(alone=True), Method()

Results = Mapping[Method, Mapping[str, np.ndarray]]
"""What was measured of each method."""


def reference(method: Method) -> Method:
    """The same method without regularisers.

    Args:
        method: a method with them.

    Returns:
        What it is compared with: equal weights, unless the losses are put together in another way.
    """
    return replace(method, lam_tsr=0.0, lam_csa=0.0, tau=TAU, reg_grad_to="encoder")


def gains(results: Results, method: Method) -> Float[np.ndarray, "seeds"]:
    """How much the regularisers gain.

    Args:
        results: with the method and its reference.
        method: one with regularisers.

    Returns:
        Difference of the mean accuracy over the tasks, percentage points, one for each seed.
    """
    own, plain = (results[which]["accuracy"].mean(axis=1) for which in (method, reference(method)))
    return own - plain


def delta_p(results: Results, method: Method) -> Float[np.ndarray, "seeds"]:
    """``delta_p_task``: the mean over the tasks of the relative gain over single-task networks.

    Args:
        results: with the method and `STL`.
        method: the method.

    Returns:
        Percent, one for each seed.
    """
    tasks = jnp.arange(results[method]["accuracy"].shape[1])
    pairs = zip(results[method]["accuracy"], results[STL]["accuracy"], strict=True)
    higher = jnp.ones(len(tasks), bool)
    return np.array([float(delta_p_task(jnp.asarray(a), jnp.asarray(b), higher, tasks)) for a, b in pairs])


def accuracy_table(
    title: str, results: Results, tasks: Sequence[str], prototype: Mapping[Method, float], of: str
) -> Table:
    """Accuracies, gains and ``delta_p_task`` of all methods.

    Args:
        title: of the table.
        results: of all methods, with their references and `STL`.
        tasks: their names.
        prototype: what an independent prototype found.
        of: the column that it belongs to.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for method, found in results.items():
        accuracy = found["accuracy"].mean(axis=0)
        regularised = method.lam_tsr or method.lam_csa
        rows.append(
            [
                method.name,
                *(f"{value:.1f}" for value in accuracy),
                f"{accuracy.mean():.2f}",
                _interval(gains(results, method)) if regularised else "",
                "0" if method.alone else _interval(delta_p(results, method)),
                f"{prototype[method]:+.2f}" if method in prototype else "",
            ]
        )
    columns = ["method", *tasks, "mean", "gain", "Δp_task, %", f"a prototype's {of}"]
    return Table(title, columns, rows)


def _interval(values: np.ndarray) -> str:
    estimate, _, high, _ = mean_interval(values)
    return f"{estimate:+.2f} ± {high - estimate:.2f}"
