"""The rules of `jaxneg.mtl.multitask`: what each method reads, what it keeps, and what it answers.

A rule turns the arithmetic of a method's own module into one step of an optimiser's link: `Asked` holds what
the link knows in this step, `Answer` the weights and the method's next state.
"""

import inspect
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxneg.mtl import losses as scalar
from jaxneg.mtl.aligned_mtl import aligned_mtl
from jaxneg.mtl.cagrad import cagrad
from jaxneg.mtl.config import config
from jaxneg.mtl.dbmtl import dbmtl_buffer, dbmtl_head_weights, dbmtl_weights
from jaxneg.mtl.dualproj import dualproj
from jaxneg.mtl.excess_mtl import excess_risks, excess_weights
from jaxneg.mtl.fairgrad import fairgrad
from jaxneg.mtl.graddrop import graddrop_draws, graddrop_masked, graddrop_representation
from jaxneg.mtl.gradnorm import gradnorm_loss, gradnorm_weights
from jaxneg.mtl.gradvac import gradvac
from jaxneg.mtl.gram import cross_gram, gram
from jaxneg.mtl.imtl_g import imtl_g
from jaxneg.mtl.mgda import mgda
from jaxneg.mtl.moco import moco_tracker, moco_weights
from jaxneg.mtl.nash import nash
from jaxneg.mtl.pcd import pcd
from jaxneg.mtl.pcgrad import pcgrad
from jaxneg.mtl.sdmgrad import modo, sdmgrad
from jaxneg.mtl.solvers import gradient_norms
from jaxneg.mtl.upgrad import upgrad

METHODS_OF_LOSSES = ("equal", "rlw", "dwa", "uw", "imtl_l", "si", "gls", "stch", "famo")
"""The methods that read no gradient: one backward pass of the weighted losses is all they need."""

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


class BufferState(NamedTuple):
    """State of DB-MTL and MoCo: T gradients beside the parameters, MoCo's weights, and the steps."""

    kept: Any
    weights: Float[Array, " tasks"]
    step: Int[Array, ""]


class PcdState(NamedTuple):
    """State of PCD: the moving average of the gradients' squared norms, and the steps."""

    mean_squares: Float[Array, " tasks"]
    step: Int[Array, ""]


class ExcessState(NamedTuple):
    """State of ExcessMTL: the squares so far, the weights, the first risks, and the steps."""

    accumulated: Any
    weights: Float[Array, " tasks"]
    first: Float[Array, " tasks"]
    step: Int[Array, ""]


class FamoState(NamedTuple):
    """State of FAMO: logits, their optimiser, the losses that wait for their successors, and the settings."""

    xi: Float[Array, " tasks"]
    opt_state: optax.OptState
    losses: Float[Array, " tasks"]
    waiting: Bool[Array, ""]
    learning_rate: Float[Array, ""]
    gamma: Float[Array, ""]
    min_losses: Float[Array, " tasks"]


class Asked(NamedTuple):
    """What a method may read: those that it does not need may be None."""

    tasks: int
    gram: Any
    losses: Any
    key: Any
    state: Any
    trunk: Any = ()
    pair: Any = ()
    representation: Any = None


class Answer(NamedTuple):
    """The weights, the method's next state, what heads weigh in their own gradients' sum, if not 1, and the
    rows that are weighted, if not the shared parameters' Jacobian.
    """

    weights: Array
    state: Any
    heads: Array | None = None
    rows: Any = None


class Method(NamedTuple):
    """How a method weighs, the state that it starts with, what it reads, and whether it weighs losses."""

    weigh: Callable[[Asked], Answer]
    init: Callable[[int], Any] | None = None
    init_like: Callable[[list[Array]], Any] | None = None
    reads_gram: bool = False
    reads_losses: bool = False
    reads_pair: bool = False
    draws: bool = False
    weighs_losses: bool = False
    max_norm: float | None = None


def rule_of(method: str | Callable[[Array], Array], options: dict[str, Any]) -> Method:
    """The rule of a method by name, or of a function of the Gram matrix."""
    if callable(method):
        if options:
            raise TypeError(
                f"options: a function of G takes none here, got {sorted(options)}; use functools.partial"
            )
        return Method(lambda asked: Answer(method(asked.gram), asked.state), reads_gram=True)
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


def _gram_method(function: Callable[..., Any], options: dict[str, Any]) -> Method:
    max_norm = None
    if function is nash:
        # The link clips after scaling, and again in every call that reuses weights.
        max_norm = options.get("max_norm", 1.0)
        options = {name: value for name, value in options.items() if name != "max_norm"}
        if max_norm is not None and max_norm <= 0:
            raise ValueError(f"max_norm: expected a positive norm, or None not to clip, got {max_norm}")
    draws = function is pcgrad and options.get("orders") is None
    reads_losses = function is mgda and options.get("normalizer", "none") in ("loss", "loss+")

    def weigh(asked: Asked) -> Answer:
        given: dict[str, Any] = (
            {"key": asked.key} if draws else {"losses": asked.losses} if reads_losses else {}
        )
        return Answer(function(asked.gram, **given, **options), asked.state)

    def rehearse(G: Array) -> Array:
        return weigh(Asked(G.shape[0], G, G[0], jax.random.key(0), ())).weights

    # A mistake in an option is told when the link is built, not when it is first traced.
    sized = [options[name] for name in ("pref", "orders") if options.get(name) is not None]
    tasks = jnp.shape(sized[0])[0] if sized else 2
    jax.eval_shape(rehearse, jax.ShapeDtypeStruct((tasks, tasks), jnp.float32))
    return Method(weigh, reads_gram=True, reads_losses=reads_losses, draws=draws, max_norm=max_norm)


def _equal() -> Method:
    return Method(lambda asked: Answer(scalar.equal_weights(asked.tasks), asked.state), weighs_losses=True)


def _rlw() -> Method:
    def weigh(asked: Asked) -> Answer:
        return Answer(scalar.rlw_weights(asked.key, asked.tasks), asked.state)

    return Method(weigh, draws=True, weighs_losses=True)


def _si() -> Method:
    return _scalarised(scalar.si)


def _gls() -> Method:
    return _scalarised(scalar.gls)


def _scalarised(scalariser: Callable[[Array], Array]) -> Method:
    """The weights are the derivatives of one number of the losses."""

    def weigh(asked: Asked) -> Answer:
        return Answer(jax.grad(scalariser)(asked.losses), asked.state)

    return Method(weigh, reads_losses=True, weighs_losses=True)


def _dwa(tau: float = 2.0, window: int = 25, steps_per_epoch: int | None = None) -> Method:
    if tau <= 0:
        raise ValueError(f"tau: expected a positive temperature, got {tau}")
    if window < 1:
        raise ValueError(f"window: expected at least one step, got {window}")
    if steps_per_epoch is not None and steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: expected at least one step, got {steps_per_epoch}")

    if steps_per_epoch is not None:
        return _dwa_by_epoch(tau, steps_per_epoch)

    def weigh(asked: Asked) -> Answer:
        recent = jnp.concatenate(
            [asked.state.recent[1:], asked.losses[None].astype(asked.state.recent.dtype)]
        )
        seen = asked.state.seen + 1
        history = jnp.stack([jnp.mean(recent[:window], axis=0), jnp.mean(recent[window:], axis=0)], axis=1)
        weights = scalar.dwa_weights(jnp.where(seen >= 2 * window, history, 1.0), tau)
        return Answer(weights, DwaState(recent, seen))

    def init(tasks: int) -> DwaState:
        return DwaState(jnp.ones((2 * window, tasks)), jnp.zeros((), jnp.int32))

    return Method(weigh, init, reads_losses=True, weighs_losses=True)


def _dwa_by_epoch(tau: float, steps: int) -> Method:
    def weigh(asked: Asked) -> Answer:
        epochs, total, seen = asked.state
        weights = scalar.dwa_weights(jnp.where(seen >= 2 * steps, epochs, 1.0), tau)
        total, seen = total + asked.losses, seen + 1
        ends = seen % steps == 0
        shifted = jnp.stack([epochs[:, 1], total / steps], axis=1)
        state = DwaEpochState(jnp.where(ends, shifted, epochs), jnp.where(ends, 0.0, total), seen)
        return Answer(weights, state)

    def init(tasks: int) -> DwaEpochState:
        return DwaEpochState(jnp.ones((tasks, 2)), jnp.zeros(tasks), jnp.zeros((), jnp.int32))

    return Method(weigh, init, reads_losses=True, weighs_losses=True)


def _uw(init: float = 0.0, optimizer: optax.GradientTransformation | None = None) -> Method:
    return _learned(scalar.uw, init, optimizer)


def _imtl_l(init: float = 0.0, optimizer: optax.GradientTransformation | None = None) -> Method:
    return _learned(scalar.imtl_l, init, optimizer)


def _learned(
    scalariser: Callable[[Array, Array], Array],
    init: float,
    optimizer: optax.GradientTransformation | None,
) -> Method:
    """The weights are the derivatives of one number of the losses and of parameters s, one for each task."""
    start, move = _learner(init, optimizer)

    def weigh(asked: Asked) -> Answer:
        weights, gradient = jax.grad(scalariser, argnums=(0, 1))(
            asked.losses.astype(asked.state.s.dtype), asked.state.s
        )
        return Answer(weights, move(asked.state, gradient))

    return Method(weigh, start, reads_losses=True, weighs_losses=True)


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
) -> Method:
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

    def weigh(asked: Asked) -> Answer:
        total, seen = asked.state
        L = asked.losses.astype(total.dtype)
        nadir = jnp.where(seen >= last, total / steps_per_epoch, 1.0)
        smooth = jax.grad(scalar.stch_log)(L, nadir, mu)
        weights = jnp.where(seen >= last, smooth, jax.grad(scalar.si)(L))
        measured = (seen >= first) & (seen < last)
        return Answer(weights, StchState(total + jnp.where(measured, L, 0.0), seen + 1))

    def init(tasks: int) -> StchState:
        return StchState(jnp.zeros(tasks), jnp.zeros((), jnp.int32))

    return Method(weigh, init, reads_losses=True, weighs_losses=True)


def _gradvac(beta: float = 0.5) -> Method:
    _check_share("beta", beta)

    def weigh(asked: Asked) -> Answer:
        return Answer(*gradvac(asked.gram, asked.state, key=asked.key, beta=beta))

    return Method(weigh, lambda tasks: jnp.zeros((tasks, tasks)), reads_gram=True, draws=True)


def _pcd(tau: float | Float[Array, " secondary"] = 0.02, beta: float = 0.999, eps: float = 1e-8) -> Method:
    if not 0 <= beta < 1:
        raise ValueError(f"beta: expected at least 0 and below 1, got {beta}")

    def weigh(asked: Asked) -> Answer:
        mean, step = asked.state.mean_squares, asked.state.step + 1
        mean = beta * mean + (1 - beta) * jnp.diagonal(asked.gram).astype(mean.dtype)
        weights, _ = pcd(asked.gram, tau, mean / (1 - beta**step), eps, return_info=True)
        return Answer(weights, PcdState(mean, step))

    def init(tasks: int) -> PcdState:
        return PcdState(jnp.zeros(tasks), jnp.zeros((), jnp.int32))

    return Method(weigh, init, reads_gram=True)


def _imtl(init: float = 0.0, optimizer: optax.GradientTransformation | None = None) -> Method:
    start, move = _learner(init, optimizer)

    def weigh(asked: Asked) -> Answer:
        s = asked.state.s
        scales, gradient = jax.grad(scalar.imtl_l, argnums=(0, 1))(asked.losses.astype(s.dtype), s)
        scales = scales.astype(asked.gram.dtype)
        weights = scales * imtl_g(asked.gram * scales[:, None] * scales)
        return Answer(weights, move(asked.state, gradient), heads=scales)

    return Method(weigh, start, reads_gram=True, reads_losses=True)


def _gradnorm(
    alpha: float = 1.5,
    steps_per_epoch: int = 1,
    optimizer: optax.GradientTransformation | None = None,
) -> Method:
    if steps_per_epoch < 1:
        raise ValueError(f"steps_per_epoch: expected at least one step, got {steps_per_epoch}")
    start, move = _learner(1.0, optimizer)

    def weigh(asked: Asked) -> Answer:
        learned, total, seen = asked.state
        L = asked.losses.astype(learned.s.dtype)
        first = seen < steps_per_epoch
        L0 = jnp.where(first, 1.0, total / steps_per_epoch)
        norms = gradient_norms(asked.gram).astype(learned.s.dtype)
        gradient = jax.grad(gradnorm_loss)(learned.s, norms, L, L0, alpha)
        weights = jnp.where(first, 1.0, gradnorm_weights(learned.s))
        learned = _where_tree(first, learned, move(learned, gradient))
        return Answer(weights, GradNormState(learned, jnp.where(first, total + L, total), seen + 1))

    def init(tasks: int) -> GradNormState:
        return GradNormState(start(tasks), jnp.zeros(tasks), jnp.zeros((), jnp.int32))

    return Method(weigh, init, reads_gram=True, reads_losses=True, weighs_losses=True)


def _famo(
    learning_rate: float = 0.025,
    gamma: float = 1e-3,
    min_losses: float | Float[Array, " tasks"] = 0.0,
    after: Literal["next", "same"] = "next",
) -> Method:
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

    def weigh(asked: Asked) -> Answer:
        state: FamoState = asked.state
        losses = asked.losses.astype(state.losses.dtype)
        if after == "next":
            state = observed(state, losses)
        weights = jax.grad(scalar.famo_loss)(losses, state.xi, state.min_losses)
        return Answer(weights, state._replace(losses=losses, waiting=jnp.array(True)))

    return Method(weigh, init, reads_losses=True, weighs_losses=True)


def _buffer(zeros: list[Array]) -> BufferState:
    tasks = zeros[0].shape[0]
    return BufferState(zeros, jnp.full(tasks, 1 / tasks, float), jnp.zeros((), jnp.int32))


def _dbmtl(beta: float = 0.9, sigma: float = 0.0) -> Method:
    _check_share("beta", beta)

    def weigh(asked: Asked) -> Answer:
        step = asked.state.step + 1
        rows = dbmtl_buffer(asked.state.kept, asked.trunk, asked.losses, step, beta, sigma)
        weights = dbmtl_weights(gradient_norms(gram(rows)))
        state = asked.state._replace(kept=rows, step=step)
        return Answer(weights, state, dbmtl_head_weights(asked.losses), rows)

    return Method(weigh, init_like=_buffer, reads_losses=True)


def _moco(
    beta: float = 0.5,
    beta_sigma: float = 0.5,
    gamma: float = 0.1,
    gamma_sigma: float = 0.5,
    rho: float = 0.0,
) -> Method:
    _check_share("beta", beta)

    def weigh(asked: Asked) -> Answer:
        step = asked.state.step + 1
        rows = moco_tracker(asked.state.kept, asked.trunk, asked.gram, asked.losses, step, beta, beta_sigma)
        weights = moco_weights(asked.state.weights, gram(rows), step, gamma, gamma_sigma, rho)
        return Answer(weights, BufferState(rows, weights, step), rows=rows)

    return Method(weigh, init_like=_buffer, reads_gram=True, reads_losses=True)


def _excess_mtl(step_size: float = 1e-2, variant: Literal["libmtl", "torchjd"] = "libmtl") -> Method:
    if variant not in ("libmtl", "torchjd"):
        raise ValueError(f"variant: expected 'libmtl' or 'torchjd', got {variant!r}")

    def weigh(asked: Asked) -> Answer:
        accumulated, risks = excess_risks(asked.state.accumulated, asked.trunk)
        begins = asked.state.step == 0
        first = jnp.where(begins, risks, asked.state.first)
        # The first risks stand for themselves in torchjd; LibMTL only remembers them.
        relative = risks / jnp.where(first > 0, first, 1.0)
        if variant == "torchjd":
            relative = jnp.where(begins, risks, relative)
        else:
            relative = jnp.where(begins, 0.0, relative)
        weights = excess_weights(asked.state.weights, relative, step_size)
        return Answer(weights, ExcessState(accumulated, weights, first, asked.state.step + 1))

    def init_like(zeros: list[Array]) -> ExcessState:
        tasks = zeros[0].shape[0]
        total = tasks if variant == "libmtl" else 1
        return ExcessState(
            zeros, jnp.full(tasks, total / tasks, float), jnp.zeros(tasks), jnp.zeros((), jnp.int32)
        )

    return Method(weigh, init_like=init_like, weighs_losses=True)


def _graddrop(leak: float | Float[Array, " tasks"] = 0.0) -> Method:
    def weigh(asked: Asked) -> Answer:
        if asked.representation is not None:
            (grads,) = asked.trunk
            draws = graddrop_draws(asked.key, grads[:, 0])
            rows = [graddrop_representation(asked.representation, grads, draws, leak)]
        else:
            rows = graddrop_masked(asked.trunk, graddrop_draws(asked.key, asked.trunk), leak)
        return Answer(jnp.ones(asked.tasks), asked.state, rows=rows)

    return Method(weigh, draws=True)


def _sdmgrad(
    lam: float = 0.3, learning_rate: float = 5.0, iterations: int = 20, momentum: float = 0.5
) -> Method:
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")

    def weigh(asked: Asked) -> Answer:
        return Answer(
            *sdmgrad(
                cross_gram(*asked.pair),
                asked.state,
                lam=lam,
                learning_rate=learning_rate,
                iterations=iterations,
                momentum=momentum,
            )
        )

    return Method(weigh, lambda tasks: jnp.full(tasks, 1 / tasks, float), reads_pair=True)


def _modo(gamma: float = 1e-3, rho: float = 0.1) -> Method:
    def weigh(asked: Asked) -> Answer:
        weights = modo(cross_gram(*asked.pair), asked.state, gamma, rho)
        return Answer(weights, weights)

    return Method(weigh, lambda tasks: jnp.full(tasks, 1 / tasks, float), reads_pair=True)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected from 0 to 1, got {value}")


_RULES: dict[str, Callable[..., Method]] = {
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
    "pcd": _pcd,
    "graddrop": _graddrop,
    "dbmtl": _dbmtl,
    "moco": _moco,
    "excess_mtl": _excess_mtl,
    "sdmgrad": _sdmgrad,
    "modo": _modo,
}


def observed(state: FamoState, L_after: Array) -> FamoState:
    """FAMO's state once the losses after its latest step are known."""
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
