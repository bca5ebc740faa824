"""How trainings share a machine: one function on every seed, and a thread for each core."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

from experiments.run_dir import RunDir

Item = TypeVar("Item")
Result = TypeVar("Result")


def over_seeds(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one seed's arrays as a function of all seeds', which lie on a leading axis.

    Accelerators take all seeds at once. A CPU takes one after the other: its cache holds the gradients of one
    small network, and not those of several.

    Args:
        function: of arrays without the axis of the seeds.

    Returns:
        The function, to be jitted.

    Example:
        >>> import jax.numpy as jnp
        >>> over_seeds(lambda a, b: a @ b)(jnp.ones((3, 2)), jnp.ones((3, 2))).tolist()
        [2.0, 2.0, 2.0]
    """
    if jax.default_backend() != "cpu":
        return jax.vmap(function)
    return lambda *arrays: jax.lax.map(lambda of_one: function(*of_one), arrays)


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], run_dir: RunDir, description: str
) -> list[Result]:
    """Calls a function on every item, as many at once as there are cores: one alone leaves the others idle
    while it compiles.

    Args:
        function: what to call; an error in it is raised here.
        items: its arguments.
        run_dir: shows the progress.
        description: what is being done.

    Returns:
        The results in the order of the items.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(function, items)
        return [result for _, result in zip(run_dir.progress(items, description), results, strict=True)]
