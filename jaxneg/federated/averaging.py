"""Averaging the models of clients, and who takes part.

FedAvg is McMahan et al. 2017 (arXiv:1602.05629, Algorithm 1), FedProx's term is Li et al. 2020
(arXiv:1812.06127, Equation 2). Clients lie on the leading axis of every array; over a mesh each device holds
some of them, and only weighted sums cross it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from jaxneg.federated.arguments import masked, path_name, per_client, wide


def federated_average(
    stacked_tree: Any, weights: Float[Array, " clients"] | None = None, *, axis_name: str | None = None
) -> Any:
    """The weighted mean of the clients' models.

    ``w = sum_k a_k w_k / sum_k a_k``

    Args:
      stacked_tree: Arrays ``[clients, ...]``: parameters, and statistics of normalisations.
      weights: A number for each client, not negative: 1 for all by default, the number of its examples in
        FedAvg's paper, 0 for a client that takes no part, whose arrays may then hold anything.
      axis_name: Mesh axis over which clients are spread, inside ``shard_map``: sums cross it.

    Returns:
      The tree without the leading axis, summed in float32 and in the arrays' own types; NaN if all weights
      are 0.

    Raises:
      ValueError: If leading axes differ, or the weights have another shape, or a known one is negative or
        not finite.
      TypeError: If an array is not floating-point. The message names its path.

    Source:
      McMahan et al. 2017, arXiv:1602.05629, Algorithm 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import federated_average
      >>> federated_average({"w": jnp.array([[1.0], [5.0]])}, jnp.array([3.0, 1.0]))["w"].tolist()
      [2.0]
    """
    clients = per_client("stacked_tree", stacked_tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(stacked_tree):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"stacked_tree: {path_name(path)!r}: expected a floating dtype, got {jnp.result_type(leaf)}"
            )
    weights = jnp.ones(clients) if weights is None else jnp.asarray(weights)
    if weights.shape != (clients,):
        raise ValueError(
            f"weights: expected one number for each of {clients} clients, got shape {weights.shape}"
        )
    if not isinstance(weights, Tracer) and not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError(f"weights: expected finite numbers, none negative, got {np.asarray(weights)}")
    weights = wide(weights * 1.0)
    total = _over(weights.sum(), axis_name)

    def mean(leaf: Array) -> Array:
        values = wide(masked(weights > 0, jnp.asarray(leaf)))
        return (_over(jnp.tensordot(weights.astype(values.dtype), values, 1), axis_name) / total).astype(
            leaf.dtype
        )

    return jax.tree.map(mean, stacked_tree)


def proximal_penalty(params: Any, global_params: Any, mu: float) -> Float[Array, ""]:
    """FedProx's term, which holds a client near the global model.

    ``mu / 2 |w - w_global|^2``

    Args:
      params: The client's parameters.
      global_params: The global model's, constants.
      mu: Strength; 0 is FedAvg.

    Returns:
      A scalar.

    Raises:
      ValueError: If ``mu`` is negative.

    Source:
      Li et al. 2020, arXiv:1812.06127, Equation 2.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import proximal_penalty
      >>> float(proximal_penalty({"w": jnp.array([3.0])}, {"w": jnp.array([1.0])}, 0.5))
      1.0
    """
    if mu < 0:
        raise ValueError(f"mu: expected a number that is not negative, got {mu}")
    squares = jax.tree.map(
        lambda w, g: jnp.sum(jnp.square(wide(w) - wide(jax.lax.stop_gradient(g)))), params, global_params
    )
    return 0.5 * mu * jax.tree.reduce(jnp.add, squares)


def finite_clients(stacked_tree: Any) -> Bool[Array, " clients"]:
    """Which clients' arrays hold no NaN and no infinity.

    Args:
      stacked_tree: Arrays ``[clients, ...]``.

    Returns:
      One truth value for each client.

    Raises:
      ValueError: If leading axes differ.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import finite_clients
      >>> finite_clients({"w": jnp.array([[1.0], [jnp.nan]])}).tolist()
      [True, False]
    """
    clients = per_client("stacked_tree", stacked_tree)
    finite = [
        jnp.isfinite(leaf).reshape(clients, -1).all(1)
        for leaf in jax.tree.leaves(stacked_tree)
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    ]
    return jnp.all(jnp.stack([jnp.ones(clients, bool), *finite]), axis=0)


class Stacked(NamedTuple):
    """The clients that can be averaged.

    Attributes:
      tree: Arrays ``[clients, ...]`` of those clients.
      names: Their names.
      left_out: Names of the others, each with the reason.
    """

    tree: Any
    names: tuple[str, ...]
    left_out: dict[str, str]


def stack_clients(trees: Sequence[Any], like: Any, names: Sequence[str] | None = None) -> Stacked:
    """Stacks what clients sent, and leaves out and names those whose models cannot be averaged.

    A client is left out if its tree has another structure than ``like``, an array of another shape or type,
    or a number that is not finite.

    Args:
      trees: A tree of arrays from each client.
      like: The global model: which paths, shapes and types are expected.
      names: What the clients are called; ``"client 0"``, ... by default.

    Returns:
      The others, stacked, and why some were left out. This runs on the host.

    Raises:
      ValueError: If there is no client, no client is left, or the names are not one for each.

    Example:
      >>> import numpy as np
      >>> from jaxneg.federated import stack_clients
      >>> sent = [{"w": np.ones(2)}, {"w": np.ones(3)}, {"w": np.array([1.0, np.nan])}]
      >>> stack_clients(sent, {"w": np.zeros(2)}, ["a", "b", "c"]).left_out
      {'b': "'w': expected shape (2,), got (3,)", 'c': "'w' is not finite"}
    """
    names = [f"client {i}" for i in range(len(trees))] if names is None else list(names)
    if len(names) != len(trees) or len(set(names)) < len(names):
        raise ValueError(f"names: expected a name of its own for each of {len(trees)} clients, got {names}")
    problems = [_problem(tree, like) for tree in trees]
    kept = [i for i, problem in enumerate(problems) if problem is None]
    left_out = {name: problem for name, problem in zip(names, problems, strict=True) if problem is not None}
    if not kept:
        reasons = "; ".join(f"{name}: {problem}" for name, problem in left_out.items())
        raise ValueError(f"trees: expected at least one client that can be averaged, got none ({reasons})")
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *map(trees.__getitem__, kept)
    )
    return Stacked(stacked, tuple(names[i] for i in kept), left_out)


def _problem(tree: Any, like: Any) -> str | None:
    expected = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(like)}
    sent = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    for path in (*expected, *sent):
        if path not in sent or path not in expected:
            return f"{path!r} is {'missing' if path not in sent else 'too much'}"
        want, got = expected[path], sent[path]
        if np.shape(got) != np.shape(want):
            return f"{path!r}: expected shape {np.shape(want)}, got {np.shape(got)}"
        if jnp.result_type(got) != jnp.result_type(want):
            return f"{path!r}: expected {jnp.result_type(want)}, got {jnp.result_type(got)}"
        if not bool(jnp.isfinite(jnp.asarray(got)).all()):
            return f"{path!r} is not finite"
    return None


def _over(value: Array, axis_name: str | None) -> Array:
    return value if axis_name is None else jax.lax.psum(value, axis_name)
