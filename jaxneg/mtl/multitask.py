"""Every method as the first link of an ``optax.chain``: a Jacobian goes in, one gradient comes out.

``optax.chain(multitask("nash"), optax.adamw(3e-4))`` takes what `jaxneg.mtl.task_grads` returns. The link
computes task weights from the Gram matrix of the shared parameters, or from the losses, and combines the task
gradients. Its type is `optax.experimental.aggregating.Aggregator`, optax's own for links that reduce a
leading axis.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax.experimental import aggregating

from jaxneg.mtl.gram import combine, gram, task_count
from jaxneg.mtl.nash import clipped, nash
from jaxneg.mtl.rules import Answer, Asked, FamoState, observed, rule_of


class MultitaskState(NamedTuple):
    """State of `multitask`.

    count: updates so far.
    weights: the native weights ``[T]`` of the latest solve, or () where the number of tasks was not given.
    method: the method's own state, or ().
    """

    count: Int[Array, ""]
    weights: Float[Array, " tasks"] | tuple[()]
    method: Any


def multitask(
    method: str | Callable[[Array], Array],
    *,
    n_tasks: int | None = None,
    update_every: int = 1,
    smoothing: float = 0.0,
    scale: Literal["native", "sum", "mean"] = "native",
    shared: Callable[[str], bool] | Any | None = None,
    param_filter: Callable[[str], bool] | Any | None = None,
    head_weighting: Literal["unit", "task"] | None = None,
    **options: Any,
) -> aggregating.Aggregator:
    """A multi-task method as an optax link that removes the leading task axis.

    ``update(stacked_grads, state, params, losses=L, key=key) -> (g, state)`` with ``g = sum_i w_i J_i`` on
    the shared parameters.

    Methods of the Gram matrix: "mgda", "pcgrad" and "gradvac" (need ``key=``), "cagrad", "imtl_g", "nash"
    (max_norm=1 by default), "fairgrad", "aligned_mtl", "upgrad", "dualproj", "config", "pcd" (its
    first task is the primary one). Methods of the losses (need ``losses=``): "si", "gls", "dwa", "uw",
    "imtl_l", "stch", "famo". Of both: "imtl", "gradnorm", "moco", "dbmtl". Of two more Jacobians,
    ``pair=(J1, J2)``: "sdmgrad", "modo". Elementwise in the parameters: "graddrop" (needs ``key=``),
    "excess_mtl". None of these: "equal", "rlw" (needs ``key=``).
    "moco", "dbmtl" and "excess_mtl" keep T copies of the shared parameters in their state.

    Other ways to call ``update``: with ``representation=`` of `task_grads_rep`, whose Jacobian holds the
    heads alone, the method works on the gradients in representation space, and the encoder's gradient is
    pulled back once (not the methods with T copies or a pair). With ``pullback=``, a function from task
    weights to the gradient of the weighted losses, and {} for the Jacobian, methods of the losses alone
    take one backward pass, and so do methods of the Gram matrix in the calls that reuse weights
    (``update_every``): only those that solve form the Jacobian, by pulling back the unit vectors. For a Gram
    matrix of each layer, or group of them, give each its own link by `optax.transforms.partition`.

    "dwa" compares the mean of the latest ``window`` losses (25) with that of the ``window`` before, with
    temperature ``tau`` (2); with ``steps_per_epoch=n`` it compares the last two epochs instead. "uw",
    "imtl_l" and "imtl" learn a number for each task (from ``init``, 0) with ``optimizer`` (Adam at
    0.025); "imtl" is IMTL-G on the gradients of the losses that "imtl_l" scales, and heads take these
    too. "stch" takes ``mu`` (1), ``pref`` and ``ref``; with ``steps_per_epoch=n`` it is `stch_log` after
    ``warmup_epochs`` (4) of "si" and one more that measures the nadir. "gradnorm" (``alpha`` 1.5) learns
    with ``optimizer`` too, on the gradients of the shared leaves; its first ``steps_per_epoch`` (1) steps
    weigh equally and give L0. "famo" (``learning_rate`` 0.025, ``gamma`` 1e-3, ``min_losses`` 0) takes
    the losses of the next call as those after the step; with ``after="same"`` it waits for
    `famo_observe`. The paper's training also clips the shared gradient to norm 1: chain
    ``optax.clip_by_global_norm(1.0)`` behind it.

    Args:
        method: one of the names above, or a function ``G [T, T] -> w [T]``.
        n_tasks: T, where the state depends on it: methods that keep a state, and ``update_every`` above 1.
            Where given, the state holds the latest weights.
        update_every: how many calls use the same weights (methods of the Gram matrix; Nash-MTL's clip is
            renewed in every call).
        smoothing: a in ``w <- a w_before + (1 - a) w``, a moving average of the native weights (CR-MOGM) that
            starts with the first; needs n_tasks.
        scale: "native" leaves the weights as the method defines them, "sum" makes them sum to T, "mean" to 1
            (weights that sum to 0 stay).
        shared: which leaves all tasks share: a predicate on the leaf's path, such as "trunk/dense/kernel", or
            a pytree of booleans like the parameters; None is all. Only these enter the Gram matrix.
        param_filter: which of the shared leaves the Gram matrix is taken of, likewise; None is all. GradNorm
            measures the last shared layer. All shared leaves take the weights that come of it.
        head_weighting: the other leaves get the sum of their tasks' gradients ("unit") or the w-weighted sum
            ("task"). The default is "unit" for methods of the Gram matrix, and "task" for those of the losses
            and GradNorm.
        **options: the method's own, as its function takes them.

    Returns:
        An `optax.experimental.aggregating.Aggregator`, which is a `optax.GradientTransformationExtraArgs`.

    Raises:
        ValueError: an unknown method or setting, a missing n_tasks, and in ``update`` a missing ``losses=``
            or ``key=`` or a task axis of the wrong length.
        TypeError: an option that the method does not take.

    Source:
        The method's module names its paper; heads and scale follow arXiv:2202.01017's and LibMTL's code;
        smoothing is Zhou et al., On the Convergence of Stochastic Multi-Objective Gradient Manipulation and
        Beyond, NeurIPS 2022.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = optax.chain(multitask("mgda"), optax.sgd(1.0))
        >>> params = {"w": jnp.zeros(2)}
        >>> updates, _ = tx.update({"w": jnp.array([[1.0, 0.0], [0.0, 1.0]])}, tx.init(params), params)
        >>> updates["w"].tolist()
        [-0.5, -0.5]
    """
    rule = rule_of(method, options)
    name = method if isinstance(method, str) else getattr(method, "__name__", "method")
    if update_every < 1:
        raise ValueError(f"update_every: expected at least 1, got {update_every}")
    stateful = rule.init is not None or rule.init_like is not None
    if update_every > 1 and (stateful or not rule.reads_gram):
        raise ValueError(
            f"update_every: only methods of the Gram matrix without a state keep their weights, got {name!r}"
        )
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing: expected at least 0 and below 1, got {smoothing}")
    if scale not in ("native", "sum", "mean"):
        raise ValueError(f"scale: expected 'native', 'sum' or 'mean', got {scale!r}")
    if head_weighting not in (None, "unit", "task"):
        raise ValueError(f"head_weighting: expected 'unit' or 'task', got {head_weighting!r}")
    if n_tasks is not None and n_tasks < 1:
        raise ValueError(f"n_tasks: expected at least one task, got {n_tasks}")
    if n_tasks is None and (stateful or update_every > 1 or smoothing):
        what = f"method {name!r}" if stateful else "update_every > 1" if update_every > 1 else "smoothing"
        raise ValueError(f"n_tasks: {what} keeps a state for each task; pass n_tasks=T")
    unit_heads = (head_weighting or ("task" if rule.weighs_losses else "unit")) == "unit"

    def init(params: optax.Params) -> MultitaskState:
        weights = () if n_tasks is None else jnp.ones(n_tasks)
        method_state = rule.init(n_tasks or 0) if rule.init else ()
        if rule.init_like:
            kept = _only(_chosen_leaves("shared", shared, params), params)
            method_state = rule.init_like(
                [
                    jnp.zeros((n_tasks or 0, *jnp.shape(leaf)), jnp.promote_types(leaf.dtype, jnp.float32))
                    for leaf in kept
                ]
            )
        return MultitaskState(jnp.zeros((), jnp.int32), weights, method_state)

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        losses: Float[Array, " tasks"] | None = None,
        key: jax.Array | None = None,
        pair: tuple[Any, Any] | None = None,
        representation: tuple[Array, Array, Callable[[Array], Any]] | None = None,
        pullback: Callable[[Array], Any] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MultitaskState]:
        del params, extra_args
        if pullback is None:
            tasks = task_count(updates)
        elif losses is None:
            raise ValueError("losses: expected those that pullback weighs; pass update(..., losses=losses)")
        else:
            tasks = jnp.size(losses)
        if n_tasks is not None and tasks != n_tasks:
            raise ValueError(f"stacked_grads: expected n_tasks={n_tasks} on the leading axis, got {tasks}")
        if losses is not None and losses.shape != (tasks,):
            raise ValueError(
                f"losses: expected shape ({tasks},), the task axis of the gradients, got {losses.shape}"
            )
        if losses is None and rule.reads_losses:
            raise ValueError(f"losses: method {name!r} weighs by the losses; pass update(..., losses=losses)")
        if key is None and rule.draws:
            raise ValueError(f"key: method {name!r} is random; pass update(..., key=key)")
        if pair is None and rule.reads_pair:
            raise ValueError(
                f"pair: method {name!r} reads the Jacobians of two more batches, independent of each other"
                " and of this one; pass update(..., pair=(J1, J2))"
            )
        of_parameters = rule.init_like is not None or rule.reads_pair
        others: list[Any] = []

        def measured(jacobian: Any) -> list[Array]:
            is_shared = _chosen_leaves("shared", shared, jacobian)
            measures = _chosen_leaves("param_filter", param_filter, jacobian)
            kept = [a and b for a, b in zip(is_shared, measures, strict=True)]
            if not any(kept):
                raise ValueError("param_filter: expected at least one shared leaf, got none")
            return _only(kept, jacobian)

        if pullback is not None:
            if of_parameters:
                raise ValueError(
                    f"pullback: expected a method of the losses or the Gram matrix, got {name!r}"
                )
            if unit_heads and shared is not None:
                raise ValueError(
                    "pullback: weighs every leaf; expected head_weighting='task', or shared=None, for method"
                    f" {name!r}"
                )
            given = _Gradients([], None, lambda weights, *_: pullback(weights))
        elif representation is not None:
            if of_parameters:
                raise ValueError(f"representation: method {name!r} needs the gradients of the parameters")
            given = _in_representation(updates, *representation, tasks)
        else:
            given = _in_parameters(updates, _chosen_leaves("shared", shared, updates))
            if (rule.reads_gram or of_parameters) and not given.rows:
                raise ValueError("shared: expected at least one shared leaf, got none")
            others = [measured(jacobian) for jacobian in pair] if pair and rule.reads_pair else []

        def gram_matrix() -> Array:
            if pullback is not None:
                return gram(measured(jax.vmap(pullback)(jnp.eye(tasks, dtype=jnp.result_type(losses)))))
            return gram(given.rows if representation is not None else measured(updates))

        def solve() -> Answer:
            G = gram_matrix() if rule.reads_gram else None
            asked = Asked(tasks, G, losses, key, state.method, given.rows, others, given.representation)
            return rule.weigh(asked)

        if update_every == 1:
            answer = solve()
        else:
            kept = jax.lax.cond(
                state.count % update_every == 0, lambda: solve().weights.astype(float), lambda: state.weights
            )
            answer = Answer(kept, state.method)
        weights = answer.weights
        if smoothing:
            averaged = smoothing * state.weights + (1 - smoothing) * weights
            weights = jnp.where(state.count == 0, weights, averaged.astype(weights.dtype))
        kept = state.weights if n_tasks is None else weights.astype(float)
        weights = _scaled(weights, scale)
        trunk_weights = weights
        if rule.max_norm is not None and pullback is None:
            trunk_weights = clipped(weights, gram(given.rows), rule.max_norm)
        unit_weights = jnp.ones_like(weights) if answer.heads is None else answer.heads
        combined = given.combine(
            trunk_weights,
            given.rows if answer.rows is None else answer.rows,
            unit_weights if unit_heads else weights,
        )
        if rule.max_norm is not None and pullback is not None:
            combined, _ = optax.clip_by_global_norm(rule.max_norm).update(combined, optax.EmptyState())
        return combined, MultitaskState(state.count + 1, kept, answer.state)

    return aggregating.Aggregator(init, update)


def nash_mtl(
    update_every: int | None = None,
    max_norm: float | None = 1.0,
    *,
    n_tasks: int | None = None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Nash-MTL as a whole: `multitask` with `nash`, weights shared by T tasks, and the clip behind it.

    ``g = (1/T) sum_i w_i J_i``, scaled to at most max_norm. With weights of this very call
    ``|g| = 1 / sqrt(T)``; the clip acts where they are older.

    Args:
        update_every: how many calls use the same weights; None is 25 where n_tasks is given, and otherwise 1.
        max_norm: of the whole gradient; None does not clip.
        n_tasks: T. Weights can be kept only where it is known before the first call.
        **options: of `multitask`: shared, param_filter, head_weighting, smoothing.

    Returns:
        The first link of an ``optax.chain``, which removes the leading task axis.

    Raises:
        ValueError: max_norm <= 0, or as `multitask`, above all update_every > 1 without n_tasks.

    Source:
        arXiv:2202.01017, Algorithm 1; with 1/T, every 25 steps and the clip as arXiv:2306.00354's code.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = optax.chain(nash_mtl(), optax.sgd(1.0))
        >>> params = {"w": jnp.zeros(2)}
        >>> updates, _ = tx.update({"w": jnp.diag(jnp.array([1.0, 4.0]))}, tx.init(params), params)
        >>> [round(float(x), 6) for x in updates["w"]]
        [-0.5, -0.5]
    """
    if max_norm is not None and max_norm <= 0:
        raise ValueError(f"max_norm: expected a positive norm, or None not to clip, got {max_norm}")
    every = update_every if update_every is not None else 1 if n_tasks is None else 25

    def nash_over_tasks(G: Array) -> Array:
        weights, _ = nash(G, return_info=True)
        return weights / G.shape[0]

    weigh = multitask(nash_over_tasks, n_tasks=n_tasks, update_every=every, **options)
    return optax.chain(weigh, *(() if max_norm is None else (optax.clip_by_global_norm(max_norm),)))


def famo_observe(opt_state: Any, L_after: Float[Array, " tasks"]) -> Any:
    """Tells FAMO, wherever it stands in an optimiser's state, the losses after the step on the same batch.

    Args:
        opt_state: the state of ``multitask("famo", after="same", n_tasks=T)`` or of a chain that holds it.
        L_after: ``[T]``.

    Returns:
        The state with FAMO's logits moved by `famo_update`.

    Raises:
        ValueError: no FAMO state inside, or losses of another shape.

    Source:
        arXiv:2306.03792, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = optax.chain(multitask("famo", n_tasks=2, after="same"), optax.sgd(0.1))
        >>> params = jnp.zeros(3)
        >>> _, state = tx.update(jnp.ones((2, 3)), tx.init(params), params, losses=jnp.array([1.0, 2.0]))
        >>> state = famo_observe(state, jnp.array([0.5, 2.0]))
        >>> [round(float(x), 3) for x in state[0].method.xi]
        [-0.025, 0.025]
    """

    def is_famo(node: Any) -> bool:
        return isinstance(node, FamoState)

    if not any(is_famo(node) for node in jax.tree.leaves(opt_state, is_leaf=is_famo)):
        raise ValueError("opt_state: expected the state of a chain that holds multitask('famo'), found none")
    return jax.tree.map(
        lambda node: observed(node, L_after) if is_famo(node) else node, opt_state, is_leaf=is_famo
    )


class _Gradients(NamedTuple):
    """The shared gradients and what is made of them.

    rows: ``[T, ...]`` each.
    representation: where the gradients are in its space.
    combine: from weights of the rows, rows, and weights of the heads to the gradient.
    """

    rows: list[Array]
    representation: Array | None
    combine: Callable[[Array, Any, Array], Any]


def _in_parameters(updates: Any, is_shared: list[bool]) -> _Gradients:
    def combined(weights: Array, rows: Any, head_weights: Array) -> Any:
        next_row = iter(rows)
        leaves, structure = jax.tree.flatten(updates)
        parts = [
            combine(weights, next(next_row).astype(leaf.dtype)) if inside else combine(head_weights, leaf)
            for leaf, inside in zip(leaves, is_shared, strict=True)
        ]
        return jax.tree.unflatten(structure, parts)

    return _Gradients(_only(is_shared, updates), None, combined)


def _in_representation(
    heads: Any, values: Array, grads: Array, pullback: Callable[[Array], Any], tasks: int
) -> _Gradients:
    if grads.shape not in ((tasks, *values.shape), values.shape):
        raise ValueError(
            f"representation: expected gradients ({tasks}, *{values.shape}), or {values.shape} with a batch"
            f" for each task, got shape {grads.shape}"
        )

    def combined(weights: Array, rows: Any, head_weights: Array) -> Any:
        (rows,) = rows
        if rows.ndim > values.ndim:
            gradient = combine(weights, rows)
        else:
            gradient = weights.reshape(-1, *(1,) * (rows.ndim - 1)) * rows
        return {**combine(head_weights, heads), "encoder": pullback(gradient)}

    return _Gradients([grads], values, combined)


def _scaled(weights: Array, scale: str) -> Array:
    if scale == "native":
        return weights
    total = jnp.sum(weights)
    target = weights.shape[0] if scale == "sum" else 1
    return jnp.where(total == 0, weights, weights * target / jnp.where(total == 0, 1.0, total))


def _only(chosen: list[bool], tree: Any) -> list[Any]:
    return [leaf for leaf, inside in zip(jax.tree.leaves(tree), chosen, strict=True) if inside]


def _chosen_leaves(name: str, chosen: Any, tree: Any) -> list[bool]:
    """Which leaves a predicate or a pytree of booleans chooses, in the order of the leaves."""
    if chosen is None:
        return [True] * len(jax.tree.leaves(tree))
    if callable(chosen):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
        return [bool(chosen(jax.tree_util.keystr(path, simple=True, separator="/"))) for path in paths]
    try:
        flags = jax.tree.map(lambda flag, part: jax.tree.map(lambda _: bool(flag), part), chosen, tree)
    except ValueError as error:
        raise ValueError(f"{name}: expected booleans in the shape of the parameters; {error}") from error
    return jax.tree.leaves(flags)
