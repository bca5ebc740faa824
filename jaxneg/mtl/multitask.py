"""Every method as the first link of an ``optax.chain``: a Jacobian goes in, one gradient comes out.

``optax.chain(multitask("nash"), optax.adamw(3e-4))`` takes what `jaxneg.mtl.task_grads` returns. The link
computes task weights from the Gram matrix of the shared parameters, or from the losses, and combines the task
gradients. Its type is `optax.experimental.aggregating.Aggregator`, optax's own for links that reduce a
leading axis.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int
from optax.experimental import aggregating

from jaxneg.mtl import losses as scalar
from jaxneg.mtl.aligned_mtl import aligned_mtl
from jaxneg.mtl.cagrad import cagrad
from jaxneg.mtl.config import config
from jaxneg.mtl.dualproj import dualproj
from jaxneg.mtl.fairgrad import fairgrad
from jaxneg.mtl.gradnorm import gradnorm_loss, gradnorm_weights
from jaxneg.mtl.gradvac import gradvac
from jaxneg.mtl.gram import combine, gram, task_count
from jaxneg.mtl.imtl_g import imtl_g
from jaxneg.mtl.mgda import mgda
from jaxneg.mtl.nash import clipped, nash
from jaxneg.mtl.pcgrad import pcgrad
from jaxneg.mtl.solvers import gradient_norms
from jaxneg.mtl.upgrad import upgrad

_GRAM_METHODS: dict[str, Callable[..., Any]] = {
    "mgda": mgda,
    "pcgrad": pcgrad,
    "cagrad": cagrad,
    "imtl_g": imtl_g,
    "nash": nash,
    "fairgrad": fairgrad,
    "aligned_mtl": aligned_mtl,
    "upgrad": upgrad,
    "dualproj": dualproj,
    "config": config,
}


class MultitaskState(NamedTuple):
    """State of `multitask`.

    count: updates so far.
    weights: the native weights ``[T]`` of the latest solve, or () where the number of tasks was not given.
    method: the method's own state, or ().
    """

    count: Int[Array, ""]
    weights: Float[Array, " tasks"] | tuple[()]
    method: Any


class DwaState(NamedTuple):
    """State of dynamic weight averaging: the latest losses, oldest first, and how many have been seen."""

    recent: Float[Array, "steps tasks"]
    seen: Int[Array, ""]


class DwaEpochState(NamedTuple):
    """State of dynamic weight averaging by epochs: two epochs' averages, oldest first, and the running
    sum.
    """

    epochs: Float[Array, "tasks 2"]
    total: Float[Array, " tasks"]
    seen: Int[Array, ""]


class LearnedState(NamedTuple):
    """State of uncertainty weighting and IMTL: what is learned for each task, and its optimiser's state."""

    s: Float[Array, " tasks"]
    opt_state: optax.OptState


class StchState(NamedTuple):
    """State of STCH by epochs: the sum of the losses that make the nadir, and how many have been seen."""

    total: Float[Array, " tasks"]
    seen: Int[Array, ""]


class GradNormState(NamedTuple):
    """State of GradNorm: what is learned, the sum of the first epoch's losses, and the steps seen."""

    learned: LearnedState
    total: Float[Array, " tasks"]
    seen: Int[Array, ""]


class FamoState(NamedTuple):
    """State of FAMO: logits, their optimiser, the losses that wait for their successors, and the settings."""

    xi: Float[Array, " tasks"]
    opt_state: optax.OptState
    losses: Float[Array, " tasks"]
    waiting: Bool[Array, ""]
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    min_losses: Float[Array, " tasks"]


class _Asked(NamedTuple):
    """What a method may read: those that it does not need may be None."""

    tasks: int
    gram: Any
    losses: Any
    key: Any
    state: Any


class _Answer(NamedTuple):
    """The weights, the method's next state, and what heads weigh in their own gradients' sum, if not 1."""

    weights: Array
    state: Any
    heads: Array | None = None


class _Method(NamedTuple):
    """How a method weighs, the state that it starts with, what it reads, and whether it weighs losses."""

    weigh: Callable[[_Asked], _Answer]
    init: Callable[[int], Any] | None = None
    reads_gram: bool = False
    reads_losses: bool = False
    draws: bool = False
    weighs_losses: bool = False
    max_norm: float | None = None


def multitask(
    method: str | Callable[[Array], Array],
    *,
    n_tasks: int | None = None,
    update_every: int = 1,
    scale: Literal["native", "sum", "mean"] = "native",
    shared: Callable[[str], bool] | Any | None = None,
    head_weighting: Literal["unit", "task"] | None = None,
    **options: Any,
) -> aggregating.Aggregator:
    """A multi-task method as an optax link that removes the leading task axis.

    ``update(stacked_grads, state, params, losses=L, key=key) -> (g, state)`` with ``g = sum_i w_i J_i`` on
    the shared parameters.

    Methods of the Gram matrix: "mgda", "pcgrad" and "gradvac" (need ``key=``), "cagrad", "imtl_g", "nash"
    (max_norm=1 by default), "fairgrad", "aligned_mtl", "upgrad", "dualproj", "config". Methods of the losses
    (need ``losses=``): "si", "gls", "dwa", "uw", "imtl_l", "stch", "famo". Of both: "imtl", "gradnorm".
    Neither: "equal", "rlw" (needs ``key=``).

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
        scale: "native" leaves the weights as the method defines them, "sum" makes them sum to T, "mean" to 1
            (weights that sum to 0 stay).
        shared: which leaves all tasks share: a predicate on the leaf's path, such as "trunk/dense/kernel", or
            a pytree of booleans like the parameters; None is all. Only these enter the Gram matrix.
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
        The method's module names its paper; heads and scale follow arXiv:2202.01017's and LibMTL's code.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> tx = optax.chain(multitask("mgda"), optax.sgd(1.0))
        >>> params = {"w": jnp.zeros(2)}
        >>> updates, _ = tx.update({"w": jnp.array([[1.0, 0.0], [0.0, 1.0]])}, tx.init(params), params)
        >>> updates["w"].tolist()
        [-0.5, -0.5]
    """
    rule = _method(method, options)
    name = method if isinstance(method, str) else getattr(method, "__name__", "method")
    if update_every < 1:
        raise ValueError(f"update_every: expected at least 1, got {update_every}")
    if update_every > 1 and (rule.weighs_losses or rule.init is not None):
        raise ValueError(
            f"update_every: only methods of the Gram matrix without a state keep their weights, got {name!r}"
        )
    if scale not in ("native", "sum", "mean"):
        raise ValueError(f"scale: expected 'native', 'sum' or 'mean', got {scale!r}")
    if head_weighting not in (None, "unit", "task"):
        raise ValueError(f"head_weighting: expected 'unit' or 'task', got {head_weighting!r}")
    if n_tasks is not None and n_tasks < 1:
        raise ValueError(f"n_tasks: expected at least one task, got {n_tasks}")
    if n_tasks is None and (rule.init is not None or update_every > 1):
        what = "update_every > 1" if rule.init is None else f"method {name!r}"
        raise ValueError(f"n_tasks: {what} keeps a state for each task; pass n_tasks=T")
    unit_heads = (head_weighting or ("task" if rule.weighs_losses else "unit")) == "unit"

    def init(params: optax.Params) -> MultitaskState:
        del params
        weights = () if n_tasks is None else jnp.ones(n_tasks)
        return MultitaskState(jnp.zeros((), jnp.int32), weights, rule.init(n_tasks or 0) if rule.init else ())

    def update(
        updates: optax.Updates,
        state: Any,
        params: optax.Params | None = None,
        *,
        losses: Float[Array, " tasks"] | None = None,
        key: jax.Array | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, MultitaskState]:
        del params, extra_args
        tasks = task_count(updates)
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
        is_shared = _shared_leaves(shared, updates)
        trunk = [leaf for leaf, inside in zip(jax.tree.leaves(updates), is_shared, strict=True) if inside]
        if rule.reads_gram and not trunk:
            raise ValueError("shared: expected at least one shared leaf, got none")

        def solve() -> _Answer:
            return rule.weigh(
                _Asked(tasks, gram(trunk) if rule.reads_gram else None, losses, key, state.method)
            )

        if update_every == 1:
            answer = solve()
        else:
            kept = jax.lax.cond(
                state.count % update_every == 0, lambda: solve().weights.astype(float), lambda: state.weights
            )
            answer = _Answer(kept, state.method)
        kept = state.weights if n_tasks is None else answer.weights.astype(float)
        weights = _scaled(answer.weights, scale)
        trunk_weights = weights if rule.max_norm is None else clipped(weights, gram(trunk), rule.max_norm)
        unit_weights = jnp.ones_like(weights) if answer.heads is None else answer.heads
        head_weights = unit_weights if unit_heads else weights
        leaves, structure = jax.tree.flatten(updates)
        combined = [
            combine(trunk_weights if inside else head_weights, leaf)
            for leaf, inside in zip(leaves, is_shared, strict=True)
        ]
        state = MultitaskState(state.count + 1, kept, answer.state)
        return jax.tree.unflatten(structure, combined), state

    return aggregating.Aggregator(init, update)


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
        lambda node: _observed(node, L_after) if is_famo(node) else node, opt_state, is_leaf=is_famo
    )


def _observed(state: FamoState, L_after: Array) -> FamoState:
    xi, opt_state = scalar.famo_update(
        state.xi,
        state.opt_state,
        state.losses,
        L_after.astype(state.losses.dtype),
        learning_rate=state.learning_rate,
        gamma=state.gamma,
        min_losses=state.min_losses,
    )
    moved = (jnp.where(state.waiting, xi, state.xi), _where_tree(state.waiting, opt_state, state.opt_state))
    return state._replace(xi=moved[0], opt_state=moved[1], waiting=jnp.array(False))


def _where_tree(condition: Array, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _method(method: str | Callable[[Array], Array], options: dict[str, Any]) -> _Method:
    if callable(method):
        if options:
            raise TypeError(
                f"options: a function of G takes none here, got {sorted(options)}; use functools.partial"
            )
        return _Method(lambda asked: _Answer(method(asked.gram), asked.state), reads_gram=True)
    if method in _RULES:
        build = _RULES[method]
        _check_options(method, options, tuple(inspect.signature(build).parameters))
        return build(**options)
    if method in _GRAM_METHODS:
        function = _GRAM_METHODS[method]
        given = ("G", "key", "losses", "return_info")
        _check_options(
            method, options, tuple(p for p in inspect.signature(function).parameters if p not in given)
        )
        return _gram_method(function, options)
    names = ", ".join(sorted([*_RULES, *_GRAM_METHODS]))
    raise ValueError(f"method: expected one of {names}, or a function of G, got {method!r}")


def _check_options(method: str, options: dict[str, Any], allowed: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        expected = f"one of {', '.join(allowed)}" if allowed else "none"
        raise TypeError(f"options: method {method!r} takes {expected}, got {', '.join(unknown)}")


def _gram_method(function: Callable[..., Any], options: dict[str, Any]) -> _Method:
    max_norm = None
    if function is nash:
        # The link clips after scaling, and again in every call that reuses weights.
        max_norm = options.get("max_norm", 1.0)
        options = {name: value for name, value in options.items() if name != "max_norm"}
        if max_norm is not None and max_norm <= 0:
            raise ValueError(f"max_norm: expected a positive norm, or None not to clip, got {max_norm}")
    draws = function is pcgrad and options.get("orders") is None
    reads_losses = function is mgda and options.get("normalizer", "none") in ("loss", "loss+")

    def weigh(asked: _Asked) -> _Answer:
        given: dict[str, Any] = (
            {"key": asked.key} if draws else {"losses": asked.losses} if reads_losses else {}
        )
        return _Answer(function(asked.gram, **given, **options), asked.state)

    def rehearse(G: Array) -> Array:
        return weigh(_Asked(G.shape[0], G, G[0], jax.random.key(0), ())).weights

    # A mistake in an option is told when the link is built, not when it is first traced.
    sized = [options[name] for name in ("pref", "orders") if options.get(name) is not None]
    tasks = jnp.shape(sized[0])[0] if sized else 2
    jax.eval_shape(rehearse, jax.ShapeDtypeStruct((tasks, tasks), jnp.float32))
    return _Method(weigh, reads_gram=True, reads_losses=reads_losses, draws=draws, max_norm=max_norm)


def _equal() -> _Method:
    return _Method(lambda asked: _Answer(scalar.equal_weights(asked.tasks), asked.state), weighs_losses=True)


def _rlw() -> _Method:
    def weigh(asked: _Asked) -> _Answer:
        return _Answer(scalar.rlw_weights(asked.key, asked.tasks), asked.state)

    return _Method(weigh, draws=True, weighs_losses=True)


def _si() -> _Method:
    return _scalarised(scalar.si)


def _gls() -> _Method:
    return _scalarised(scalar.gls)


def _scalarised(scalariser: Callable[[Array], Array]) -> _Method:
    """The weights are the derivatives of one number of the losses."""

    def weigh(asked: _Asked) -> _Answer:
        return _Answer(jax.grad(scalariser)(asked.losses), asked.state)

    return _Method(weigh, reads_losses=True, weighs_losses=True)


def _dwa(tau: float = 2.0, window: int = 25, steps_per_epoch: int | None = None) -> _Method:
    if tau <= 0:
        raise ValueError(f"tau: expected a positive temperature, got {tau}")
    if window < 1:
        raise ValueError(f"window: expected at least one step, got {window}")
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: expected at least one step, got {steps_per_epoch}")

    if steps_per_epoch is not None:
        return _dwa_by_epoch(tau, steps_per_epoch)

    def weigh(asked: _Asked) -> _Answer:
        recent = jnp.concatenate(
            [asked.state.recent[1:], asked.losses[None].astype(asked.state.recent.dtype)]
        )
        seen = asked.state.seen + 1
        history = jnp.stack([jnp.mean(recent[:window], axis=0), jnp.mean(recent[window:], axis=0)], axis=1)
        weights = scalar.dwa_weights(jnp.where(seen >= 2 * window, history, 1.0), tau)
        return _Answer(weights, DwaState(recent, seen))

    def init(tasks: int) -> DwaState:
        return DwaState(jnp.ones((2 * window, tasks)), jnp.zeros((), jnp.int32))

    return _Method(weigh, init, reads_losses=True, weighs_losses=True)


def _dwa_by_epoch(tau: float, steps: int) -> _Method:
    def weigh(asked: _Asked) -> _Answer:
        epochs, total, seen = asked.state
        weights = scalar.dwa_weights(jnp.where(seen >= 2 * steps, epochs, 1.0), tau)
        total, seen = total + asked.losses, seen + 1
        ends = seen % steps == 0
        shifted = jnp.stack([epochs[:, 1], total / steps], axis=1)
        state = DwaEpochState(jnp.where(ends, shifted, epochs), jnp.where(ends, 0.0, total), seen)
        return _Answer(weights, state)

    def init(tasks: int) -> DwaEpochState:
        return DwaEpochState(jnp.ones((tasks, 2)), jnp.zeros(tasks), jnp.zeros((), jnp.int32))

    return _Method(weigh, init, reads_losses=True, weighs_losses=True)


def _uw(init: float = 0.0, optimizer: optax.GradientTransformation | None = None) -> _Method:
    return _learned(scalar.uw, init, optimizer)


def _imtl_l(init: float = 0.0, optimizer: optax.GradientTransformation | None = None) -> _Method:
    return _learned(scalar.imtl_l, init, optimizer)


def _learned(
    scalariser: Callable[[Array, Array], Array],
    init: float,
    optimizer: optax.GradientTransformation | None,
) -> _Method:
    """The weights are the derivatives of one number of the losses and of parameters s, one for each task."""
    start, move = _learner(init, optimizer)

    def weigh(asked: _Asked) -> _Answer:
        weights, gradient = jax.grad(scalariser, argnums=(0, 1))(
            asked.losses.astype(asked.state.s.dtype), asked.state.s
        )
        return _Answer(weights, move(asked.state, gradient))

    return _Method(weigh, start, reads_losses=True, weighs_losses=True)


def _learner(
    init: float, optimizer: optax.GradientTransformation | None
) -> tuple[Callable[[int], LearnedState], Callable[[LearnedState, Array], LearnedState]]:
    """How parameters of the tasks start and move."""
    optimizer = optax.adam(0.025) if optimizer is None else optimizer

    def start(tasks: int) -> LearnedState:
        s = jnp.full(tasks, init, float)
        return LearnedState(s, optimizer.init(s))

    def move(state: LearnedState, gradient: Array) -> LearnedState:
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.s)
        return LearnedState(jnp.asarray(optax.apply_updates(state.s, updates)), opt_state)

    return start, move


def _stch(
    mu: float = 1.0,
    pref: Float[Array, " tasks"] | None = None,
    ref: Float[Array, " tasks"] | float = 0.0,
    steps_per_epoch: int | None = None,
    warmup_epochs: int = 4,
) -> _Method:
    if mu <= 0:
        raise ValueError(f"mu: expected a positive number, got {mu}")
    if steps_per_epoch is None:
        return _scalarised(lambda L: scalar.stch(L, mu, pref, ref))
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: expected at least one step, got {steps_per_epoch}")
    if warmup_epochs < 0:
        raise ValueError(f"warmup_epochs: expected at least 0, got {warmup_epochs}")
    if pref is not None or jnp.ndim(ref) or ref != 0:
        raise ValueError(
            "pref, ref: expected neither with steps_per_epoch, where the nadir takes their place"
        )
    first, last = warmup_epochs * steps_per_epoch, (warmup_epochs + 1) * steps_per_epoch

    def weigh(asked: _Asked) -> _Answer:
        total, seen = asked.state
        L = asked.losses.astype(total.dtype)
        nadir = jnp.where(seen >= last, total / steps_per_epoch, 1.0)
        smooth = jax.grad(scalar.stch_log)(L, nadir, mu)
        weights = jnp.where(seen >= last, smooth, jax.grad(scalar.si)(L))
        measured = (seen >= first) & (seen < last)
        return _Answer(weights, StchState(total + jnp.where(measured, L, 0.0), seen + 1))

    def init(tasks: int) -> StchState:
        return StchState(jnp.zeros(tasks), jnp.zeros((), jnp.int32))

    return _Method(weigh, init, reads_losses=True, weighs_losses=True)


def _gradvac(beta: float = 0.5) -> _Method:
    if not 0 <= beta <= 1:
        raise ValueError(f"beta: expected from 0 to 1, got {beta}")

    def weigh(asked: _Asked) -> _Answer:
        return _Answer(*gradvac(asked.gram, asked.state, key=asked.key, beta=beta))

    return _Method(weigh, lambda tasks: jnp.zeros((tasks, tasks)), reads_gram=True, draws=True)


def _imtl(init: float = 0.0, optimizer: optax.GradientTransformation | None = None) -> _Method:
    start, move = _learner(init, optimizer)

    def weigh(asked: _Asked) -> _Answer:
        s = asked.state.s
        scales, gradient = jax.grad(scalar.imtl_l, argnums=(0, 1))(asked.losses.astype(s.dtype), s)
        scales = scales.astype(asked.gram.dtype)
        weights = scales * imtl_g(asked.gram * scales[:, None] * scales)
        return _Answer(weights, move(asked.state, gradient), heads=scales)

    return _Method(weigh, start, reads_gram=True, reads_losses=True)


def _gradnorm(
    alpha: float = 1.5,
    steps_per_epoch: int = 1,
    optimizer: optax.GradientTransformation | None = None,
) -> _Method:
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: expected at least one step, got {steps_per_epoch}")
    start, move = _learner(1.0, optimizer)

    def weigh(asked: _Asked) -> _Answer:
        learned, total, seen = asked.state
        L = asked.losses.astype(learned.s.dtype)
        first = seen < steps_per_epoch
        L0 = jnp.where(first, 1.0, total / steps_per_epoch)
        norms = gradient_norms(asked.gram).astype(learned.s.dtype)
        gradient = jax.grad(gradnorm_loss)(learned.s, norms, L, L0, alpha)
        weights = jnp.where(first, 1.0, gradnorm_weights(learned.s))
        learned = _where_tree(first, learned, move(learned, gradient))
        return _Answer(weights, GradNormState(learned, jnp.where(first, total + L, total), seen + 1))

    def init(tasks: int) -> GradNormState:
        return GradNormState(start(tasks), jnp.zeros(tasks), jnp.zeros((), jnp.int32))

    return _Method(weigh, init, reads_gram=True, reads_losses=True, weighs_losses=True)


def _famo(
    learning_rate: float = 0.025,
    gamma: float = 1e-3,
    min_losses: float | Float[Array, " tasks"] = 0.0,
    after: Literal["next", "same"] = "next",
) -> _Method:
    if learning_rate <= 0:
        raise ValueError(f"learning_rate: expected a positive rate, got {learning_rate}")
    if gamma < 0:
        raise ValueError(f"gamma: expected a decay of at least 0, got {gamma}")
    if after not in ("next", "same"):
        raise ValueError(f"after: expected 'next' or 'same', got {after!r}")

    def init(tasks: int) -> FamoState:
        xi, opt_state = scalar.famo_init(tasks, float)
        bounds = jnp.broadcast_to(jnp.asarray(min_losses, xi.dtype), (tasks,))
        rate, decay = (jnp.asarray(value, xi.dtype) for value in (learning_rate, gamma))
        return FamoState(xi, opt_state, jnp.ones_like(xi), jnp.array(False), rate, decay, bounds)

    def weigh(asked: _Asked) -> _Answer:
        state: FamoState = asked.state
        losses = asked.losses.astype(state.losses.dtype)
        if after == "next":
            state = _observed(state, losses)
        weights = jax.grad(scalar.famo_loss)(losses, state.xi, state.min_losses)
        return _Answer(weights, state._replace(losses=losses, waiting=jnp.array(True)))

    return _Method(weigh, init, reads_losses=True, weighs_losses=True)


_RULES: dict[str, Callable[..., _Method]] = {
    "equal": _equal,
    "rlw": _rlw,
    "si": _si,
    "gls": _gls,
    "dwa": _dwa,
    "uw": _uw,
    "imtl_l": _imtl_l,
    "stch": _stch,
    "famo": _famo,
    "gradnorm": _gradnorm,
    "imtl": _imtl,
    "gradvac": _gradvac,
}


def _scaled(weights: Array, scale: str) -> Array:
    if scale == "native":
        return weights
    total = jnp.sum(weights)
    target = weights.shape[0] if scale == "sum" else 1
    return jnp.where(total == 0, weights, weights * target / jnp.where(total == 0, 1.0, total))


def _shared_leaves(shared: Any, updates: Any) -> list[bool]:
    """Which leaves are shared, in the order of the leaves."""
    if shared is None:
        return [True] * len(jax.tree.leaves(updates))
    if callable(shared):
        paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(updates)]
        return [bool(shared(jax.tree_util.keystr(path, simple=True, separator="/"))) for path in paths]
    try:
        flags = jax.tree.map(lambda flag, part: jax.tree.map(lambda _: bool(flag), part), shared, updates)
    except ValueError as error:
        raise ValueError(f"shared: expected booleans in the shape of the parameters; {error}") from error
    return jax.tree.leaves(flags)
