"""The one place where a flax nnx module becomes pure functions over nested dicts of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

from jaxneg.nn.batch_norm import NormalisedModel, Params, Stats


class Model(NamedTuple):
    """A model as pure functions.

    Attributes:
      init: ``(key) -> params``, a nested dict of arrays with string keys.
      apply: ``(params, *inputs) -> outputs``.
    """

    init: Callable[[PRNGKeyArray], Params]
    apply: Callable[..., Any]


def bridge(build: Callable[[nnx.Rngs], nnx.Module]) -> Model:
    """A flax nnx module as pure ``init`` and ``apply``.

    Args:
      build: Makes the module from its random streams; all its state must be ``nnx.Param``.

    Returns:
      The model. Its parameters have the module's attribute names as keys, and ``"0"``, ``"1"``, ... in lists.

    Raises:
      TypeError: If the module holds state other than ``nnx.Param``.
      ValueError: From ``apply``, if the parameters are not those of ``init``. The message names a path.

    Example:
      >>> import jax
      >>> from flax import nnx
      >>> from jaxneg.nn import bridge
      >>> model = bridge(lambda rngs: nnx.Linear(3, 2, rngs=rngs))
      >>> model.apply(params := model.init(jax.random.key(0)), jax.numpy.ones((5, 3))).shape
      (5, 2)
    """
    graph, variables = _abstract(build, nnx.Param)

    def apply(params: Params, *inputs: Any, **options: Any) -> Any:
        return nnx.merge(graph, _filled("params", variables, params))(*inputs, **options)

    return Model(_init(build), apply)


def bridge_normalised(build: Callable[[nnx.Rngs], nnx.Module]) -> NormalisedModel:
    """A flax nnx module with batch normalisation as pure functions.

    Args:
      build: Makes the module from its random streams; its state must be ``nnx.Param`` and ``nnx.BatchStat``,
        and it must overwrite the latter with those of the batch unless ``module.eval()`` was called.

    Returns:
      The model. Its parameters and its statistics have the module's attribute names as keys, and ``"0"``,
      ``"1"``, ... in lists.

    Raises:
      TypeError: If the module holds state other than ``nnx.Param`` and ``nnx.BatchStat``.
      ValueError: If parameters or statistics are not the model's. The message names a path.

    Example:
      >>> import jax
      >>> from jaxneg.nn import BatchNorm, bridge_normalised
      >>> model = bridge_normalised(lambda rngs: BatchNorm(2))
      >>> stats = model.statistics(model.init(jax.random.key(0)), jax.numpy.array([[0.0, 3.0], [2.0, 3.0]]))
      >>> stats["variance"].tolist()
      [1.0, 0.0]
    """
    graph, variables, averages = _abstract(build, nnx.Param, nnx.BatchStat)

    def module(params: Params) -> Any:
        fresh = jax.tree.map(lambda shape: shape, averages)  # no values: the batch's come in their place
        return nnx.merge(graph, _filled("params", variables, params), fresh)

    def apply(params: Params, *inputs: Any, **options: Any) -> Any:
        return module(params)(*inputs, **options)

    def statistics(params: Params, *inputs: Any, **options: Any) -> Stats:
        training = module(params)
        training(*inputs, **options)
        return _nested(nnx.state(training, nnx.BatchStat))

    def evaluate(params: Params, stats: Stats, *inputs: Any, **options: Any) -> Any:
        states = _filled("params", variables, params), _filled("stats", averages, stats)
        evaluation = nnx.merge(graph, *states)
        evaluation.eval()
        return evaluation(*inputs, **options)

    return NormalisedModel(_init(build), apply, statistics, evaluate)


def _init(build: Callable[[nnx.Rngs], nnx.Module]) -> Callable[[PRNGKeyArray], Params]:
    return lambda key: _nested(nnx.state(build(nnx.Rngs(key)), nnx.Param))


def _abstract(build: Callable[[nnx.Rngs], nnx.Module], *kinds: type[nnx.Variable]) -> tuple[Any, ...]:
    """The module's structure and its variables of each kind, which must be all that it has."""
    graph, *states, others = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))), *kinds, ...)
    if unexpected := {type(leaf).__name__ for leaf in jax.tree.leaves(others, is_leaf=_is_variable)}:
        expected = " and ".join(f"nnx.{kind.__name__}" for kind in kinds)
        raise TypeError(f"build: expected a module that holds {expected} only, got also {sorted(unexpected)}")
    return graph, *states


def _nested(state: nnx.State) -> Params:
    values = dict(zip(_paths(state), jax.tree.leaves(state), strict=True))
    return nnx.traversals.unflatten_mapping(values)


def _filled(name: str, state: nnx.State, nested: Params) -> nnx.State:
    """The variables of ``state`` with the values of a nested dict."""
    values, paths = nnx.traversals.flatten_mapping(nested), _paths(state)
    if differing := sorted("/".join(path) for path in values.keys() ^ set(paths)):
        raise ValueError(f"{name}: {differing[0]!r} is missing or too much")
    leaves, structure = jax.tree.flatten(state, is_leaf=_is_variable)
    variables = [leaf.replace(values[path]) for path, leaf in zip(paths, leaves, strict=True)]
    return jax.tree.unflatten(structure, variables)


def _paths(state: nnx.State) -> list[tuple[str, ...]]:
    return [tuple(str(key) for key in path) for path, _ in nnx.to_flat_state(state)]


def _is_variable(x: Any) -> bool:
    return isinstance(x, nnx.Variable)
