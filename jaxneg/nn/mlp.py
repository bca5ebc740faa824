"""A multilayer perceptron with one trunk for all tasks and a linear head for each (hard parameter sharing).

Caruana 1997, Multitask Learning, doi:10.1023/A:1007379606734, Section 1.1.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.contraction import contract

MLP_RULES = (
    (r"trunk/\d*[02468]/kernel", P(None, "model")),
    (r"trunk/\d*[02468]/bias", P("model")),
    (r"trunk/\d*[13579]/kernel", P("model", None)),
)
"""Tensor parallelism over the mesh axis ``model``: layers are split by columns and by rows in turn, so that
two layers cost one all-reduce (Shoeybi et al. 2019, arXiv:1909.08053, Section 3). Heads are replicated."""


class MLP(nnx.Module):
    """The module behind :func:`mlp`."""

    def __init__(
        self,
        features: int,
        hidden: Sequence[int],
        outputs: Sequence[int],
        activation: Callable[[Array], Array],
        dtype: DTypeLike | None,
        kernel_init: nnx.Initializer | None,
        rngs: nnx.Rngs,
    ):
        options: Any = {} if kernel_init is None else {"kernel_init": kernel_init}

        def linear(n: int, m: int) -> nnx.Linear:
            return nnx.Linear(n, m, dtype=dtype, dot_general=contract, rngs=rngs, **options)

        sizes = [features, *hidden]
        self.trunk = nnx.List([linear(n, m) for n, m in zip(sizes, hidden, strict=False)])
        self.heads = nnx.List([linear(sizes[-1], size) for size in outputs])
        self.activation = activation

    def __call__(self, x: Float[Array, "batch features"]) -> tuple[Float[Array, "batch outputs"], ...]:
        """The outputs of each task."""
        for layer in self.trunk:
            x = self.activation(layer(x))
        return tuple(head(x) for head in self.heads)


def mlp(
    features: int,
    hidden: Sequence[int],
    outputs: Sequence[int],
    *,
    activation: Callable[[Array], Array] = jax.nn.relu,
    dtype: DTypeLike | None = None,
    kernel_init: nnx.Initializer | None = None,
) -> Model:
    """A shared trunk and one linear head a task.

    ``h_0 = x,  h_i = activation(h_{i-1} W_i + b_i),  y_t = h_n V_t + c_t``

    Args:
      features: Number of inputs.
      hidden: Width of each trunk layer; may be empty.
      outputs: Number of outputs of each task.
      activation: Elementwise function of the trunk.
      dtype: Type of the computation; by default that of inputs and parameters.
      kernel_init: Initializer of the kernels; by default flax's, LeCun normal.

    Returns:
      ``init(key) -> params`` with ``params["trunk"]["0"]["kernel"]`` and ``params["heads"]["0"]["kernel"]``;
      ``apply(params, x [batch, features])`` gives a tuple with one ``[batch, outputs[t]]`` a task.

    Raises:
      ValueError: If a size is not positive, or there is no task.

    Source:
      Caruana 1997, doi:10.1023/A:1007379606734.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import mlp
      >>> model = mlp(4, (8,), (3, 1))
      >>> [y.shape for y in model.apply(model.init(jax.random.key(0)), jnp.ones((5, 4)))]
      [(5, 3), (5, 1)]
    """
    if not outputs or any(size < 1 for size in (features, *hidden, *outputs)):
        raise ValueError(
            "features, hidden, outputs: expected positive sizes and at least one task, got "
            f"{features}, {tuple(hidden)}, {tuple(outputs)}"
        )
    return bridge(lambda rngs: MLP(features, hidden, outputs, activation, dtype, kernel_init, rngs))
