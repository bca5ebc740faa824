"""One small classifier for every setting of a grid, all trained by one program.

Every setting has the same rows; those that anonymisation dropped have weight 0 and are never drawn. So all
settings and seeds have the same shapes, and their axis can be mapped, batched or laid over a mesh.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.fairness.arguments import Data, wide

L2 = 2.5e-7
"""scikit-learn's alpha of 1e-4 over twice the batch of 200."""


class Network(NamedTuple):
    """A classifier as pure functions.

    Attributes:
      init: ``(key) -> params``.
      apply: ``(params, x [batch, features])`` gives logits of class 1, ``[batch]`` or, alone or as the only
        element of a tuple, ``[batch, 1]``.
    """

    init: Callable[[PRNGKeyArray], Any]
    apply: Callable[..., Any]


def dense_network(features: int, hidden: Sequence[int] = ()) -> Network:
    """Logistic regression, or with hidden layers a multilayer perceptron with ReLU.

    ``h_0 = x,  h_i = relu(h_(i-1) W_i + b_i),  logit = h_n w + c``; Glorot normal weights, biases 0

    Args:
      features: Number of inputs.
      hidden: Width of each hidden layer; none for logistic regression.

    Returns:
      The network; its parameters are a list of ``{"kernel", "bias"}``.

    Raises:
      ValueError: If a size is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.fairness import dense_network
      >>> network = dense_network(3, (8,))
      >>> network.apply(network.init(jax.random.key(0)), jnp.ones((5, 3))).shape
      (5,)
    """
    return _dense_network((features, *hidden, 1))


@cache  # the same functions for the same sizes, so that jit knows them again
def _dense_network(sizes: tuple[int, ...]) -> Network:
    if any(size < 1 for size in sizes):
        raise ValueError(f"features, hidden: expected positive sizes, got {sizes[0]} and {sizes[1:-1]}")

    def init(key: PRNGKeyArray) -> list[dict[str, Array]]:
        kernels = [
            jax.nn.initializers.glorot_normal()(layer_key, shape)
            for layer_key, shape in zip(jax.random.split(key, len(sizes) - 1), pairwise(sizes), strict=True)
        ]
        return [{"kernel": kernel, "bias": jnp.zeros(kernel.shape[1], kernel.dtype)} for kernel in kernels]

    def apply(params: list[dict[str, Array]], x: Float[Array, "batch features"]) -> Float[Array, " batch"]:
        for number, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            x = jax.nn.relu(x) if number < len(params) - 1 else x
        return x[:, 0]

    return Network(init, apply)


def train_grid(
    features: Float[Data, "*configs rows features"],
    y: Int[Data, "*configs rows"],
    weight: Float[Data, "configs rows"],
    keys: PRNGKeyArray,
    hidden: int | Sequence[int] = 100,
    steps: int = 3000,
    *,
    learning_rate: float | None = None,
    batch_size: int = 200,
    l2: float = L2,
    network: Any = None,
    at_once: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Trains one classifier for each configuration.

    ``minimise mean over a batch of -ln p(y | x) + l2 sum of squared weights`` by Adam; the rows of a batch
    are drawn with probability proportional to their weight

    Args:
      features: Of each configuration, or one table for all.
      y: Labels 0 and 1, likewise.
      weight: Of the rows of each configuration; a row of weight 0 is never drawn.
      keys: A key for each configuration.
      hidden: Widths of the hidden layers, a number for one layer; 0 or none is logistic regression.
      steps: Updates.
      learning_rate: Of Adam; by default 1e-3, for logistic regression 1e-2.
      batch_size: Rows drawn for an update.
      l2: Strength of the penalty on kernels; biases have none.
      network: ``init`` and ``apply`` as :class:`Network` has them, in the place of ``hidden``; so has
        ``jaxneg.nn.mlp(features, hidden, (1,))``.
      at_once: Configurations that are trained in the same vectorised loop; all by default. A CPU, whose cache
        holds one small network, is quickest with 1.
      mesh: With an axis "config", over which configurations are spread; it must divide their number.

    Returns:
      Parameters with a leading axis of configurations.

    Raises:
      ValueError: If shapes differ, a size is not positive, or the mesh does not fit. If no row of a
        configuration has weight, its parameters are those that it began with.

    Source:
      arXiv:2505.07985, Section 4: scikit-learn's ``MLPClassifier`` by default; ours draws with replacement.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.fairness import predict_grid, train_grid
      >>> x, y = jnp.array([[-1.0], [1.0]]), jnp.array([0, 1])
      >>> params = train_grid(x, y, jnp.ones((3, 2)), jax.random.split(jax.random.key(0), 3), 0, 400)
      >>> (predict_grid(params, x, 0) > 0.5).tolist()
      [[False, True], [False, True], [False, True]]
    """
    features, y, weight = jnp.asarray(features), jnp.asarray(y), jnp.asarray(weight)
    configs = weight.shape[0] if weight.ndim == 2 else 0
    rows = features.shape[-2:-1]
    if (
        features.ndim not in (2, 3)
        or weight.shape != (configs, *rows)
        or y.shape[-1:] != rows
        or y.ndim not in (1, 2)
    ):
        raise ValueError(
            "features, y, weight: expected [rows, features], [rows] and [configs, rows], the first two also"
            f" with configs before, got shapes {features.shape}, {y.shape} and {weight.shape}"
        )
    for name, array, rank in (("features", features, 3), ("y", y, 2), ("keys", keys, 1)):
        if array.ndim == rank and array.shape[0] != configs:
            raise ValueError(
                f"{name}: expected {configs} configurations, as weight has, got {array.shape[0]}"
            )
    if keys.shape != (configs,) or configs < 1:
        raise ValueError(
            f"keys: expected one typed key for each of {configs} configurations, got shape {keys.shape}"
        )
    if min(steps, batch_size) < 1 or (at_once is not None and at_once < 1):
        raise ValueError(
            f"steps, batch_size, at_once: expected at least 1, got {steps}, {batch_size} and {at_once}"
        )
    layers = hidden_layers(hidden)
    if learning_rate is None:
        learning_rate = 1e-3 if layers or network is not None else 1e-2
    model = dense_network(features.shape[-1], layers) if network is None else Network(*network)
    apart = {"features": features.ndim == 3, "y": y.ndim == 2, "weight": True, "keys": True}
    train = partial(
        _train_grid,
        init=model.init,
        apply=model.apply,
        steps=steps,
        batch_size=batch_size,
        at_once=configs if at_once is None else at_once,
    )
    rates = jnp.asarray(learning_rate, jnp.float32), jnp.asarray(l2, jnp.float32)
    if mesh is None:
        return train(features, y, weight, keys, *rates)
    if "config" not in mesh.shape or configs % mesh.shape["config"]:
        raise ValueError(
            f"mesh: expected an axis 'config' whose size divides {configs} configurations, got"
            f" {dict(mesh.shape)}"
        )
    configs_apart, same = (NamedSharding(mesh, spec) for spec in (P("config"), P()))
    arguments = {
        "features": features,
        "y": y,
        "weight": weight,
        "keys": keys,
        "learning_rate": rates[0],
        "l2": rates[1],
    }
    places = {name: configs_apart if apart.get(name, False) else same for name in arguments}
    sharded = jax.shard_map(
        lambda *own: train(*own),
        mesh=mesh,
        in_specs=tuple(place.spec for place in places.values()),
        out_specs=P("config"),
        check_vma=False,
    )
    return jax.jit(sharded)(*jax.device_put(tuple(arguments.values()), tuple(places.values())))


def predict_grid(
    params: Any,
    features: Float[Data, "*configs rows features"],
    hidden: int | Sequence[int] = 100,
    *,
    network: Any = None,
) -> Float[Array, "configs rows"]:
    """Probability of class 1 from each configuration's classifier.

    Args:
      params: What :func:`train_grid` returned.
      features: Of each configuration, or one table for all.
      hidden: As in :func:`train_grid`.
      network: As in :func:`train_grid`.

    Returns:
      Probabilities, in float32 or wider.

    Raises:
      ValueError: If features are no tables.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.fairness import dense_network, predict_grid
      >>> network = dense_network(2)
      >>> params = jax.vmap(network.init)(jax.random.split(jax.random.key(0), 3))
      >>> predict_grid(params, jnp.zeros((4, 2)), 0)[0].tolist()
      [0.5, 0.5, 0.5, 0.5]
    """
    features = jnp.asarray(features)
    if features.ndim not in (2, 3):
        raise ValueError(f"features: expected tables, got shape {features.shape}")
    model = dense_network(features.shape[-1], hidden_layers(hidden)) if network is None else Network(*network)

    def predict(params: Any, features: Array) -> Array:
        return jax.nn.sigmoid(wide(_logits(model.apply(params, features))))

    return jax.vmap(predict, (0, 0 if features.ndim == 3 else None))(params, features)


def hidden_layers(hidden: int | Sequence[int]) -> tuple[int, ...]:
    """``100`` as ``(100,)``, 0 as no layer."""
    if isinstance(hidden, int):
        return (hidden,) if hidden else ()
    return tuple(hidden)


def _logits(outputs: Any) -> Array:
    outputs = outputs[0] if isinstance(outputs, tuple) else outputs
    return outputs[:, 0] if outputs.ndim == 2 else outputs


@partial(jax.jit, static_argnames=("init", "apply", "steps", "batch_size", "at_once"))
def _train_grid(
    features: Array,
    y: Array,
    weight: Array,
    keys: Array,
    learning_rate: Array,
    l2: Array,
    *,
    init: Callable[..., Any],
    apply: Callable[..., Any],
    steps: int,
    batch_size: int,
    at_once: int,
) -> Any:
    step = grid_step(apply, batch_size)

    def train(features: Array, y: Array, weight: Array, key: Array) -> Any:
        init_key, draw_key = jax.random.split(key)
        first = begin(init(init_key), draw_key)
        cumulative = jnp.cumsum(wide(weight))

        def advance(state: ConfigState, _: None) -> tuple[ConfigState, None]:
            return step(state, features, y, cumulative, learning_rate, l2)[0], None

        trained, _ = lax.scan(advance, first, length=steps)
        return jax.tree.map(
            lambda new, old: jnp.where(cumulative[-1] > 0, new, old), trained.params, first.params
        )

    own = features if features.ndim == 3 else None, y if y.ndim == 2 else None

    def of_config(each: tuple[Any, Any, Array, Array]) -> Any:
        own_features, own_y, weight, key = each
        return train(
            features if own_features is None else own_features, y if own_y is None else own_y, weight, key
        )

    return lax.map(of_config, (*own, weight, keys), batch_size=min(at_once, weight.shape[0]))


class ConfigState(NamedTuple):
    """What one configuration passes from update to update.

    Attributes:
      step: Number of updates.
      params: Of its network.
      opt_state: Adam's.
      key: Where its batches are drawn from.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any
    key: PRNGKeyArray


def begin(params: Any, key: PRNGKeyArray) -> ConfigState:
    """The state before the first update.

    Args:
      params: Of the network.
      key: For the batches.
    """
    return ConfigState(jnp.zeros((), jnp.int32), params, optax.adam(1.0).init(params), key)


def grid_step(
    apply: Callable[..., Any], batch_size: int
) -> Callable[..., tuple[ConfigState, Float[Array, ""]]]:
    """An update of one configuration, which :func:`train_grid` scans and maps.

    Args:
      apply: The network's.
      batch_size: Rows drawn for the update.

    Returns:
      ``(state, features, y, cumulative_weight, learning_rate, l2) -> (state, loss)``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.fairness.training import begin, dense_network, grid_step
      >>> network = dense_network(1)
      >>> state = begin(network.init(jax.random.key(0)), jax.random.key(1))
      >>> step = grid_step(network.apply, 4)
      >>> table = jnp.ones((2, 1)), jnp.array([0, 1]), jnp.array([1.0, 2.0])
      >>> jax.eval_shape(step, state, *table, 0.1, 0.0)[1].shape
      ()
    """

    def loss_fn(params: Any, x: Array, labels: Array, l2: Array) -> Array:
        losses = optax.sigmoid_binary_cross_entropy(
            wide(_logits(apply(params, x))), labels.astype(jnp.float32)
        )
        squares = sum(jnp.sum(jnp.square(wide(leaf))) for leaf in jax.tree.leaves(params) if leaf.ndim > 1)
        return jnp.mean(losses) + l2 * squares

    def step(
        state: ConfigState, features: Array, y: Array, cumulative: Array, learning_rate: Array, l2: Array
    ) -> tuple[ConfigState, Array]:
        uniform = jax.random.uniform(jax.random.fold_in(state.key, state.step), (batch_size,))
        # Below the total, so that the first row above it exists and has weight.
        rows = jnp.searchsorted(cumulative, uniform * cumulative[-1], side="right", method="scan_unrolled")
        rows = jnp.minimum(rows, features.shape[0] - 1)
        loss, grads = jax.value_and_grad(loss_fn)(state.params, features[rows], y[rows], l2)
        updates, opt_state = optax.adam(learning_rate).update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return ConfigState(state.step + 1, params, opt_state, state.key), loss

    return step
