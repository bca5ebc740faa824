"""The train step: a pure ``(state, batch) -> (state, metrics)``, and the same step on a mesh.

A scalar loss takes its gradient. A vector of task losses ``L[T]`` takes the Jacobian
``J[t] = dL[t]/dparams`` by pulling back the T one-hot cotangents through one shared forward pass; the first
link of the optax chain aggregates it. Where that link needs less, it can have less: the gradients in the
space of a shared representation, or one pullback of the weighted losses. Everything that a step needs is in
its state, so that a resumed run repeats the run that was never stopped: the random key of step n is
``fold_in(state.key, n)``.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Int, PRNGKeyArray

from jaxneg.train.mesh import MIN_SIZE, Rules, batch_shardings, path_name, shardings

Params = Any
Batch = Any
Metrics = dict[str, Array]
LossFn = Callable[[Params, Batch, PRNGKeyArray], tuple[Array, Mapping[str, ArrayLike]]]


BATCH_SPEC = P("data")
"""Examples lie on the leading axis, sharded over the mesh axis ``data``."""

# In a loop XLA runs gradients of convolutions on a CPU tens of times slower: few tasks are unrolled there.
_UNROLLED_TASKS = 16


class TrainState(NamedTuple):
    """What a train step passes on: enough to resume exactly.

    Attributes:
      step: Number of updates made so far.
      params: Parameters, a tree of floating-point arrays.
      opt_state: State of the optax transformation.
      key: Random key of the whole run; never changes.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any
    key: PRNGKeyArray


class SplitLoss(NamedTuple):
    """A multi-task loss in two parts, for parameters ``{"encoder": ..., "heads": ...}``; a loss function too.

    Attributes:
      encode: ``(params["encoder"], batch, key) -> Z``.
      head_losses: ``(params["heads"], Z, batch, key) -> (losses [T], aux)``.
      own_inputs: Whether Z is ``[T, B, ...]``, a batch for each task, and loss t depends on ``Z[t]`` alone.
    """

    encode: Callable[[Params, Batch, PRNGKeyArray], Array]
    head_losses: Callable[[Params, Array, Batch, PRNGKeyArray], tuple[Array, Mapping[str, ArrayLike]]]
    own_inputs: bool = False

    def __call__(
        self, params: Params, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Mapping[str, ArrayLike]]:
        """Both parts, one after the other."""
        return self.head_losses(params["heads"], self.encode(params["encoder"], batch, key), batch, key)


class Precision(NamedTuple):
    """In which floating-point type parameters are kept, the loss is computed, and its results are given.

    Attributes:
      params: Type of the parameters and of their gradients.
      compute: Type to which parameters and floating-point batch arrays are cast before the loss function.
      output: Type to which losses and floating-point auxiliary values are cast.
      keep: Regular expression for the paths of batch arrays that are not cast, such as ``"ref_seq_nll"``.
    """

    params: DTypeLike = jnp.float32
    compute: DTypeLike = jnp.bfloat16
    output: DTypeLike = jnp.float32
    keep: str | None = None


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    precision: Precision | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
      params: Parameters, a tree of floating-point arrays.
      tx: The optax transformation that :func:`make_step` gets.
      key: Random key of the whole run.
      precision: If given, the parameters are cast to ``precision.params``.

    Returns:
      The state at step 0.

    Raises:
      TypeError: If a parameter is not floating-point. The message names its path.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxneg.train import init_state
      >>> int(init_state({"w": jnp.zeros(3)}, optax.sgd(0.1), jax.random.key(0)).step)
      0
    """
    _require_floating(params)

    def as_array(leaf: ArrayLike) -> Array:  # an explicit dtype, since a weak one would compile a step twice
        return jnp.asarray(leaf, precision.params if precision else jnp.result_type(leaf))

    params = jax.tree.map(as_array, params)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), key)


def make_step(
    loss_fn: LossFn,
    tx: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    remat: bool | str = False,
    precision: Precision | None = None,
    jacobian: Literal["stacked", "sequential", "representation", "weighted"] = "stacked",
    after_update: Callable[[Any, Array], Any] | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """A pure train step, for one loss or for several.

    ``params <- params + tx(dL/dparams)``

    With T task losses, ``tx`` receives the Jacobian (a leading axis T on every leaf) and the extra arguments
    ``losses`` and ``key``; with a scalar loss the gradient and ``value`` and ``key``.

    Args:
      loss_fn: ``(params, batch, key) -> (loss, aux)`` with ``loss`` a scalar or ``[T]`` and ``aux`` a mapping
        of scalars or small arrays, which go into the metrics.
      tx: An optax transformation; for task losses one that starts with an aggregator.
      accumulate: Number of microbatches into which a batch is split; their gradients are averaged, with the
        weights ``aux["weight"]`` (a scalar, or one for each task) if the loss function gives them: the number
        of tokens makes the mean over a batch exact. The n-th microbatch takes the key ``fold_in(key, n)``.
      remat: Whether to recompute the forward pass in the backward pass: ``True`` saves nothing, a name is
        one of ``jax.checkpoint_policies``.
      precision: The mixed-precision policy; by default nothing is cast.
      jacobian: How a vector of losses is pulled back. ``"stacked"``: all tasks at once (not for
        convolutions on a sharded batch: mapped over tasks they gather its activations); ``"sequential"``: one
        after the other, the backward pass in the memory of one. ``"representation"``, for a `SplitLoss`:
        through the heads alone; ``tx`` gets the Jacobian ``{"heads": ...}`` and ``representation=(Z, dL/dZ
        [T, ...], pullback)``, and answers with the gradients of both parts. ``"weighted"``, for aggregators
        that read the losses alone, or reuse weights between solves: ``tx`` gets {} and ``pullback=``, from
        weights ``[T]`` to the gradient of the weighted losses, which costs one backward pass.
      after_update: ``(opt_state, losses) -> opt_state`` with the losses of the same batch and key at the new
        parameters, which cost one more forward pass.

    Returns:
      ``step(state, batch) -> (state, metrics)``. Metrics: ``loss`` or ``losses [T]``, ``grad_norm`` (``[T]``
      for task losses), ``update_norm``, and aux (averaged over microbatches; ``weight`` is summed).

    Raises:
      ValueError: For an option that does not exist, T = 0, a loss of higher rank, an empty batch, a batch
        that does not split into microbatches, aux that hides a metric.
      TypeError: For a parameter that is not floating-point or not of ``precision.params``, aux that is not a
        mapping.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxneg.train import init_state, make_step
      >>> step = make_step(lambda w, x, key: (jnp.mean((x @ w) ** 2), {}), tx := optax.sgd(0.1))
      >>> state, metrics = step(init_state(jnp.ones(3), tx, jax.random.key(0)), jnp.ones((4, 3)))
      >>> float(metrics["loss"])
      9.0
    """
    if accumulate < 1:
        raise ValueError(f"accumulate: expected at least 1, got {accumulate}")
    if jacobian not in ("stacked", "sequential", "representation", "weighted"):
        raise ValueError(
            f"jacobian: expected 'stacked', 'sequential', 'representation' or 'weighted', got {jacobian!r}"
        )
    if jacobian in ("representation", "weighted") and accumulate > 1:
        raise ValueError(f"accumulate: expected 1 with jacobian={jacobian!r}, got {accumulate}")
    if jacobian == "representation" and not isinstance(loss_fn, SplitLoss):
        raise TypeError(f"loss_fn: jacobian='representation' needs a SplitLoss, got {type(loss_fn).__name__}")
    extended = optax.with_extra_args_support(tx)

    def prepared(params: Params, batch: Batch) -> Params:
        return _gathered(_cast(params, precision.compute) if precision else params, batch)

    def checked(result: Any) -> tuple[Array, dict[str, Array]]:
        loss, aux = _checked_loss(result)
        return _cast((loss, aux), precision.output) if precision else (loss, aux)

    def evaluate(params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, dict[str, Array]]:
        if precision:
            batch = _cast(batch, precision.compute, precision.keep)
        return checked(loss_fn(prepared(params, batch), batch, key))

    if remat:
        evaluate = jax.checkpoint(evaluate, policy=None if remat is True else _policy(remat))

    def pulled(pullback: Callable[[Array], Any], loss: Array) -> Any:
        basis = jnp.eye(loss.size, dtype=loss.dtype)

        def unrolled(basis: Array) -> Any:
            return jax.tree.map(lambda *rows: jnp.stack(rows), *map(pullback, basis))

        def looped(basis: Array) -> Any:
            return jax.lax.map(pullback, basis)

        if jacobian == "stacked":
            return jax.vmap(pullback)(basis)
        if loss.size > _UNROLLED_TASKS:
            return looped(basis)
        if jacobian == "representation":
            return unrolled(basis)
        return jax.lax.platform_dependent(basis, cpu=unrolled, default=looped)

    def differentiate(params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, dict, Any]:
        loss, pullback, aux = jax.vjp(lambda p: evaluate(p, batch, key), params, has_aux=True)
        if loss.ndim == 0:
            return loss, aux, pullback(jnp.ones_like(loss))[0]
        if jacobian == "weighted":
            return loss, aux, lambda weights: pullback(weights.astype(loss.dtype))[0]
        return loss, aux, pulled(pullback, loss)[0]

    def differentiate_heads(params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, dict, Any]:
        assert isinstance(loss_fn, SplitLoss)
        split = loss_fn
        if precision:
            batch = _cast(batch, precision.compute, precision.keep)

        def encode(encoder: Params) -> Array:
            return split.encode(prepared(encoder, batch), batch, key)

        if remat:
            encode = jax.checkpoint(encode, policy=None if remat is True else _policy(remat))
        Z, pullback = jax.vjp(encode, params["encoder"])

        def head_losses(heads: Params, Z: Array) -> tuple[Array, dict[str, Array]]:
            return checked(split.head_losses(prepared(heads, batch), Z, batch, key))

        losses, pull_heads, aux = jax.vjp(head_losses, params["heads"], Z, has_aux=True)
        if losses.ndim == 0:
            raise ValueError(
                "loss_fn: expected one loss for each task with jacobian='representation', got one"
            )
        heads, grads = pulled(pull_heads, losses)
        if split.own_inputs:
            _, grads = pull_heads(jnp.ones_like(losses))
        return losses, aux, (heads, (Z, grads, lambda gradient: pullback(gradient.astype(Z.dtype))[0]))

    def value(params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Array, dict, None]:
        return *evaluate(params, batch, key), None

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        params = state.params
        _require_floating(params, precision)
        _require_examples(batch, accumulate)
        loss_key, tx_key = jax.random.split(jax.random.fold_in(state.key, state.step))

        how = differentiate_heads if jacobian == "representation" else differentiate
        loss, aux, grads = _accumulated(how, accumulate, params, batch, loss_key)
        extra: dict[str, Any] = {"losses" if loss.ndim else "value": loss, "key": tx_key}
        measured = grads
        if jacobian == "representation":
            heads, extra["representation"] = grads
            grads, measured = {"heads": heads}, (heads, extra["representation"][1])
        elif jacobian == "weighted" and loss.ndim:
            extra["pullback"], grads, measured = grads, {}, None
        updates, opt_state = extended.update(grads, state.opt_state, params, **extra)
        _require_like(updates, params)
        new_params = optax.apply_updates(params, updates)
        if after_update:
            losses_after, _, _ = _accumulated(value, accumulate, new_params, batch, loss_key)
            opt_state = after_update(opt_state, losses_after)

        metrics = {
            "losses" if loss.ndim else "loss": loss,
            "update_norm": _norm(updates),
        }
        if measured is not None:
            metrics["grad_norm"] = _norm(measured, keep=loss.ndim)
        if hidden := metrics.keys() & aux.keys():
            raise ValueError(f"aux: {sorted(hidden)} would hide the step's own metrics; choose other names")
        return TrainState(state.step + 1, new_params, opt_state, state.key), metrics | aux

    return step


class ShardedStep:
    """A step on a mesh, compiled when it is first called. Made by :func:`shard_step`.

    Attributes:
      mesh: The mesh.
      state_shardings: A ``NamedSharding`` for each array of the state.
      batch_shardings: A ``NamedSharding`` for each array of the batch.
    """

    def __init__(
        self,
        step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
        mesh: Mesh,
        state_shardings: TrainState,
        batch_shardings: Any,
    ):
        self.mesh = mesh
        self.state_shardings = state_shardings
        self.batch_shardings = batch_shardings
        out_shardings = (state_shardings, NamedSharding(mesh, P()))
        self._jitted = jax.jit(step, out_shardings=out_shardings, donate_argnums=0)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One update. ``state`` is donated: its arrays are gone afterwards."""
        with jax.set_mesh(self.mesh):
            return self._jitted(_placed(state, self.state_shardings), self.place_batch(batch))

    def place_state(self, state: TrainState) -> TrainState:
        """A copy of the state on the mesh, safe to donate."""

        def place(x: Array, sharding: NamedSharding) -> Array:
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
                # device_put refuses a typed key on a mesh that spans processes.
                words = jax.device_put(jnp.copy(jax.random.key_data(x)), sharding)
                return jax.random.wrap_key_data(words, impl=jax.random.key_impl(x))
            # A copy first: a replicated array would share its memory with the original.
            return jax.device_put(jnp.copy(x), sharding)

        return jax.tree.map(place, state, self.state_shardings)

    def place_batch(self, batch: Batch) -> Batch:
        """The batch on the mesh."""
        return _placed(batch, self.batch_shardings)

    def trace(self, state: TrainState, batch: Batch) -> jax.stages.Traced:
        """The step traced for these shapes, which may be abstract; to be lowered in ``jax.set_mesh``."""

        def abstract(x: Array, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

        shardings = (self.state_shardings, self.batch_shardings)
        with jax.set_mesh(self.mesh):
            return self._jitted.trace(*jax.tree.map(abstract, (state, batch), shardings))


def _placed(tree: Any, shardings: Any) -> Any:
    """The tree with these shardings; what lies so already is left alone, which is cheap.

    Under explicit axes a sharding given to jit instead would not be part of the argument's type.
    """

    def place(x: Any, sharding: NamedSharding) -> Array:
        return x if getattr(x, "sharding", None) == sharding else jax.device_put(x, sharding)

    return jax.tree.map(place, tree, shardings)


def shard_step(
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]],
    mesh: Mesh,
    state: TrainState,
    batch: Batch,
    *,
    rules: Rules = (),
    fsdp: str | None = "data",
    batch_spec: P = BATCH_SPEC,
    min_size: int = MIN_SIZE,
) -> ShardedStep:
    """The step on a mesh, compiled once, with its state sharded and donated.

    Args:
      step: What :func:`make_step` made.
      mesh: Mesh with auto or explicit axes.
      state: A state, or its ``ShapeDtypeStruct``s.
      batch: A batch, or its ``ShapeDtypeStruct``s.
      rules: Partition rules of the parameters, see :func:`partition_specs`.
      fsdp: Mesh axis over which parameters that no rule decides are sharded; ``None`` replicates them.
      batch_spec: Partition of the batch's leading axes.
      min_size: Number of elements below which ``fsdp`` leaves an array replicated.

    Returns:
      The compiled step, with ``place_state`` and ``place_batch``.

    Raises:
      ValueError: If a spec does not fit an array or the mesh. The message names the array's path.

    Example:
      >>> import jax, jax.numpy as jnp, optax
      >>> from jaxneg.train import init_state, make_mesh, make_step, shard_step
      >>> step = make_step(lambda w, x, key: (jnp.mean((x @ w) ** 2), {}), tx := optax.sgd(0.1))
      >>> state, x = init_state(jnp.ones(3), tx, jax.random.key(0)), jnp.ones((8, 3))
      >>> sharded = shard_step(step, make_mesh({"data": -1}), state, x)
      >>> state, metrics = sharded(sharded.place_state(state), sharded.place_batch(x))
      >>> float(metrics["loss"])
      9.0
    """
    return ShardedStep(
        step,
        mesh,
        shardings(state, mesh, rules, fsdp=fsdp, min_size=min_size),
        batch_shardings(batch, mesh, batch_spec),
    )


def _accumulated(
    fn: Callable, n: int, params: Params, batch: Batch, key: PRNGKeyArray
) -> tuple[Array, dict[str, Array], Params]:
    """``fn(params, batch, key) -> (loss, aux, grads)``, averaged over n microbatches by aux["weight"]."""
    if n == 1:
        return fn(params, batch, key)

    # Microbatch i takes the examples i, i + n, ...: each lies on all devices, as the batch does.
    micro = jax.tree.map(lambda x: x.reshape(-1, n, *x.shape[1:]).swapaxes(0, 1), batch)

    def weighted(i: Array, microbatch: Batch) -> tuple[Array, tuple[Array, dict, Params]]:
        loss, aux, grads = fn(params, microbatch, jax.random.fold_in(key, i))
        weight = aux.get("weight", jnp.ones(()))
        weight = weight.astype(jnp.promote_types(weight.dtype, jnp.float32))
        if weight.shape not in ((), loss.shape):
            raise ValueError(f"aux['weight']: expected shape () or {loss.shape}, got {weight.shape}")
        return weight, (_scaled(weight, loss), _scaled(weight.sum(), aux), _scaled(weight, grads))

    first = jax.tree.map(lambda x: x[0], micro)
    zeros = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype, out_sharding=s.sharding), jax.eval_shape(weighted, 0, first)
    )

    def body(total: Any, indexed: tuple[Array, Batch]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, weighted(*indexed)), None

    (weight, (loss, aux, grads)), _ = jax.lax.scan(body, zeros, (jnp.arange(n), micro))
    loss, aux, grads = _scaled(1 / weight, loss), _scaled(1 / weight.sum(), aux), _scaled(1 / weight, grads)
    if grads is not None:
        grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    return loss, {name: weight if name == "weight" else x for name, x in aux.items()}, grads


def _scaled(weight: Array, tree: Any) -> Any:
    """``weight * leaf`` from float32 up, along the leading axis if there are weights; 0 hides a NaN."""

    def scale(leaf: ArrayLike) -> Array:
        leaf = jnp.asarray(leaf)
        leaf = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        w = jnp.expand_dims(weight, range(1, leaf.ndim)) if weight.ndim else weight
        return jnp.where(w == 0, 0, w * leaf)

    return jax.tree.map(scale, tree)


def _norm(tree: Any, keep: int = 0) -> Array:
    """The Euclidean norm of a tree, over all but the first ``keep`` axes, accumulated from float32 up."""

    def squares(x: Array) -> Array:
        return jnp.sum(
            jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32))), axis=range(keep, x.ndim)
        )

    return jnp.sqrt(sum(map(squares, jax.tree.leaves(tree)), jnp.zeros(())))


def _cast(tree: Any, dtype: DTypeLike, keep: str | None = None) -> Any:
    def cast(path: tuple[Any, ...], leaf: Array) -> Array:
        kept = keep is not None and re.search(keep, path_name(path))
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) and not kept else leaf

    return jax.tree_util.tree_map_with_path(cast, tree)


def _gathered(params: Params, batch: Batch) -> Params:
    """Under explicit axes, the parameters without the mesh axes that shard the batch.

    An FSDP parameter is gathered before use; its gradient is scattered by the transpose. Under auto axes the
    compiler does this by itself.
    """
    axes = {
        axis
        for leaf in jax.tree.leaves(batch)
        if jnp.ndim(leaf)
        for axis in _explicit_axes(jax.typeof(leaf).sharding, jax.typeof(leaf).sharding.spec[0])
    }
    if not axes:
        return params

    def gather(leaf: Array) -> Array:
        sharding = jax.typeof(leaf).sharding
        kept = (tuple(a for a in _explicit_axes(sharding, entry) if a not in axes) for entry in sharding.spec)
        return jax.reshard(leaf, P(*(entry or None for entry in kept)))

    return jax.tree.map(gather, params)


def _explicit_axes(sharding: NamedSharding, entry: Any) -> tuple[str, ...]:
    names = (entry,) if isinstance(entry, str) else tuple(entry or ())
    types = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True))
    return tuple(name for name in names if types[name] == AxisType.Explicit)


def _policy(name: str) -> Callable[..., bool]:
    known = [
        p for p in dir(jax.checkpoint_policies) if not p.startswith("_") and "save" in p and "names" not in p
    ]
    if name not in known:
        raise ValueError(f"remat: expected a bool or one of {known}, got {name!r}")
    return getattr(jax.checkpoint_policies, name)


def _checked_loss(result: Any) -> tuple[Array, dict[str, Array]]:
    if not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(f"loss_fn: expected (loss, aux), got {type(result).__name__}")
    loss, aux = jnp.asarray(result[0]), result[1]
    if not isinstance(aux, Mapping):
        raise TypeError(f"loss_fn: expected aux to be a mapping, got {type(aux).__name__}")
    if loss.ndim > 1:
        raise ValueError(f"loss_fn: expected a scalar loss or one for each task, got shape {loss.shape}")
    if loss.shape == (0,):
        raise ValueError("loss_fn: expected at least one task, got losses of shape (0,)")
    if not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"loss_fn: expected a floating-point loss, got {loss.dtype}")
    return loss, {name: jnp.asarray(x) for name, x in aux.items()}


def _require_floating(params: Params, precision: Precision | None = None) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"params: {path_name(path)!r} has dtype {dtype}; parameters must be floating-point"
            )
        if precision and dtype != precision.params:
            expected = jnp.dtype(precision.params)
            raise TypeError(f"params: {path_name(path)!r} has dtype {dtype}; precision.params is {expected}")


def _require_examples(batch: Batch, accumulate: int) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        shape, name = jnp.shape(leaf), path_name(path) or "the array"
        if 0 in shape:
            raise ValueError(f"batch: {name!r} is empty, of shape {shape}")
        if accumulate > 1 and (not shape or shape[0] % accumulate):
            raise ValueError(
                f"batch: {name!r} of shape {shape} does not split into accumulate={accumulate} microbatches"
            )


def _require_like(updates: Any, params: Params) -> None:
    ours, theirs = jax.tree.map(jnp.shape, params), jax.tree.map(jnp.shape, updates)
    if ours != theirs:
        raise ValueError(
            "tx: expected updates of the parameters' shapes; task losses need an aggregator as the first link"
            f" of the chain. Expected {ours}, got {theirs}"
        )
