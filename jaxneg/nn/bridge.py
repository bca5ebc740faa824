"""The one place where a flax nnx module becomes two pure functions over a nested dict of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray

Params = dict[str, Any]


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
    graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
    leaves, structure = jax.tree.flatten(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    if others := {type(leaf).__name__ for leaf in leaves if not isinstance(leaf, nnx.Param)}:
        raise TypeError(f"build: expected a module that holds nnx.Param only, got also {sorted(others)}")
    paths = [tuple(str(key) for key in path) for path, _ in nnx.to_flat_state(state)]

    def init(key: PRNGKeyArray) -> Params:
        values = dict(zip(paths, jax.tree.leaves(nnx.state(build(nnx.Rngs(key)))), strict=True))
        return nnx.traversals.unflatten_mapping(values)

    def apply(params: Params, *inputs: Any, **options: Any) -> Any:
        values = nnx.traversals.flatten_mapping(params)
        if differing := sorted("/".join(path) for path in values.keys() ^ set(paths)):
            raise ValueError(f"params: {differing[0]!r} is missing or too much")
        variables = [leaf.replace(values[path]) for path, leaf in zip(paths, leaves, strict=True)]
        return nnx.merge(graph, jax.tree.unflatten(structure, variables))(*inputs, **options)

    return Model(init, apply)
