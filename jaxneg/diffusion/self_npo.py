"""Self-NPO: a negative model from a diffusion model's own truncated samples, without preference data.

Wang, Sun, Teng, Liu, Yuan, Song and Li 2025, "Self-NPO: Data-Free Diffusion Model Enhancement via Truncated
Diffusion Fine-Tuning", arXiv:2505.11777 (AAAI 2026), as its code has it. One step:

1. noise data (or start from noise) to a level t of a DDIM grid;
2. let the teacher, a moving average of the student, take K guided DDIM jumps, and say where x_t would end: y;
3. noise x_t, not y, further to a level s, and have the student predict y from there.

Neither x_t nor y carries a gradient. With the guidance of the paper's text (0) and an exact teacher this is
ordinary training on the model's own distribution; it is the weak (-1) or inverse (below) guidance of the
released code that makes the student bad in the way that the teacher is. Guiding away from it is what helps.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, PRNGKeyArray

from jaxneg.diffusion.arguments import (
    Denoise,
    alpha_bar,
    at_least_float32,
    at_timesteps,
    beside,
    check_positive,
    check_range,
    checked_output,
    one_of,
    same_shape,
    wide,
    wide_norm,
)
from jaxneg.diffusion.conditions import drop_condition, null_like
from jaxneg.diffusion.guidance import guide
from jaxneg.diffusion.predictions import Prediction, add_noise, predict_noise, predict_x0

# A network with its parameters to be given: ``denoise(params, x [B, ...], t [B], cond)``.
ParametricDenoise = Callable[[Any, Array, Array, Any], Array]


class DDIMGrid(NamedTuple):
    """Some of a schedule's timesteps, and before each the one that DDIM jumps to.

    Attributes:
        timesteps: rising; ``tau_j = (j + 1) floor(T / steps) - 1``.
        timesteps_prev: ``tau_{j-1}``, and 0 before the first.
        alphas_cumprod: alpha-bar at ``timesteps``.
        alphas_cumprod_prev: alpha-bar at ``timesteps_prev``; the first is that of timestep 0 and not 1.
    """

    timesteps: Int[np.ndarray, " steps"]
    timesteps_prev: Int[np.ndarray, " steps"]
    alphas_cumprod: Float[np.ndarray, " steps"] | Float[Array, " steps"]
    alphas_cumprod_prev: Float[np.ndarray, " steps"] | Float[Array, " steps"]


class SelfNPOState(NamedTuple):
    """What `self_npo_step` passes on: enough to resume exactly.

    Attributes:
        step: number of updates made so far.
        params: the student's parameters: the negative model.
        teacher: their moving average, at least in float32.
        opt_state: state of the optax transformation.
        key: random key of the whole run; never changes.
    """

    step: Int[Array, ""]
    params: Any
    teacher: Any
    opt_state: Any
    key: PRNGKeyArray


def ddim_grid(alphas_cumprod: Float[ArrayLike, " timesteps"], steps: int) -> DDIMGrid:
    """An even grid of DDIM's levels over a schedule.

    ``tau_j = (j + 1) h - 1,  h = floor(T / steps),  j = 0 .. steps - 1``

    Args:
        alphas_cumprod: alpha-bar of the schedule.
        steps: number of levels, S.

    Returns:
        The grid.

    Raises:
        ValueError: ``steps`` outside 1 .. T, or an alpha-bar that is no vector or does not fall.

    Source:
        arXiv:2505.11777, its code (25 levels of 1000).

    Example:
        >>> ddim_grid(np.linspace(0.99, 0.01, 1000), 4).timesteps.tolist()
        [249, 499, 749, 999]
    """
    table: Any = alpha_bar(alphas_cumprod)
    if not 1 <= steps <= len(table):
        raise ValueError(f"steps: expected from 1 to the schedule's {len(table)} timesteps, got {steps}")
    timesteps = np.arange(1, steps + 1) * (len(table) // steps) - 1
    before = np.append(0, timesteps[:-1])
    return DDIMGrid(timesteps, before, table[timesteps], table[before])


def ddim_step(
    grid: DDIMGrid, x0: Float[Array, "batch ..."], eps: Float[Array, "batch ..."], index: Int[Array, " batch"]
) -> Float[Array, "batch ..."]:
    """A deterministic DDIM jump from each example's level to the one before it.

    ``x' = alpha' x0 + sigma' eps`` at the level ``timesteps_prev[index]``

    Args:
        grid: the levels.
        x0: the estimates of the clean examples.
        eps: the estimates of their noise.
        index: in 0 .. S-1, where each example is on the grid.

    Returns:
        The examples at the level before, at least in float32.

    Raises:
        ValueError: x0 and eps of different shapes.

    Source:
        Song et al. 2021, arXiv:2010.02502, equation (12), with eta = 0.

    Example:
        >>> grid = ddim_grid(np.array([0.75, 0.36]), 2)
        >>> x = ddim_step(grid, jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.array([1]))
        >>> round(float(x[0, 0]), 3)
        0.866
    """
    x0, eps = at_least_float32("x0", x0), at_least_float32("eps", eps)
    same_shape("eps", eps, "x0", x0)
    return add_noise(x0, eps, *_level(grid.alphas_cumprod_prev, index, x0.dtype))


def truncated_rollout(
    eps_fn: Denoise,
    x: Float[Array, "batch ..."],
    cond: Any,
    null_cond: Any,
    index: Int[Array, " batch"],
    grid: DDIMGrid,
    steps: int = 5,
    guidance: float = -1.0,
    *,
    prediction: Prediction = "epsilon",
) -> tuple[Float[Array, "batch ..."], Int[Array, " batch"], Float[Array, "batch ..."]]:
    """A few guided DDIM jumps of the teacher, and where it says that they lead.

    ``eps_w = eps(x, t, c) + w (eps(x, t, c) - eps(x, t, null)),  x0 = (x - sigma_t eps_w) / alpha_t,
    x' = alpha_t' x0 + sigma_t' eps_w``, K times, where examples that have reached timestep 0 stay there; then
    x0 once more

    Args:
        eps_fn: the teacher, ``(x [B, ...], t [B], cond) -> prediction``. It is called on 2B examples, with
            their conditions and without; on B where ``guidance`` is 0 or -1, which need one of the two.
        x: examples at the levels ``grid.timesteps[index]``.
        cond: conditions, a tree with B rows, or None.
        null_cond: what stands for no condition, a tree that broadcasts to ``cond``.
        index: in 0 .. S-1, where each example is on the grid.
        grid: the levels (`ddim_grid`).
        steps: number of jumps, K.
        guidance: w. 0 follows the condition, -1 ignores it, below that runs away from it.
        prediction: what the teacher predicts.

    Returns:
        The examples after the jumps, their timesteps, and the teacher's clean estimates from there, at least
        in float32; no gradient flows through them. (The official code stops as soon as all examples have
        reached timestep 0, with the estimates of the jump before; this one never does.)

    Raises:
        ValueError: a negative number of steps, an index that is no vector of integers for the examples, or a
            null condition that does not fit.

    Source:
        arXiv:2505.11777, truncated diffusion fine-tuning; its code.

    Example:
        >>> grid = ddim_grid(np.linspace(0.99, 0.01, 1000), 25)
        >>> x, index = jnp.ones((2, 3)), jnp.array([2, 9])
        >>> x, t, target = truncated_rollout(lambda x, t, c: x, x, None, None, index, grid)
        >>> t.tolist(), target.shape
        ([0, 199], (2, 3))
    """
    if steps < 0:
        raise ValueError(f"steps: expected at least 0, got {steps}")
    if index.shape != x.shape[:1] or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(f"index: expected integers of shape {x.shape[:1]}, got {index.dtype} {index.shape}")

    timesteps = np.append(grid.timesteps_prev[:1], grid.timesteps)
    append: Any = jnp.append if isinstance(grid.alphas_cumprod, Tracer) else np.append
    alphas_cumprod = append(grid.alphas_cumprod_prev[:1], grid.alphas_cumprod)
    path = jnp.maximum(index + 1 - jnp.arange(steps + 1)[:, None], 0)
    x = at_least_float32("x", x)
    levels = _level(alphas_cumprod, path, x.dtype)
    times = at_timesteps(timesteps, path, index.dtype)
    return _rollout(eps_fn, x, cond, null_cond, times, levels, guidance, prediction)


def renoise(
    key: PRNGKeyArray,
    x_t: Float[Array, "batch ..."],
    t: Int[Array, " batch"],
    s: Int[Array, " batch"],
    alphas_cumprod: Float[ArrayLike, " timesteps"],
) -> Float[Array, "batch ..."]:
    """Examples taken from one level of noise to a higher one, along the forward process.

    ``x_s = (alpha_s / alpha_t) x_t + sqrt(max(sigma_s^2 - sigma_t^2 alpha_s^2 / alpha_t^2, 0)) n``

    Computed as ``alpha_s (x_t / alpha_t + sqrt(max(1 / SNR_s - 1 / SNR_t, 0)) n)``, whose difference keeps
    its digits in float32.

    Args:
        key: for the noise n, drawn in the shape and dtype of the result.
        x_t: noisy examples.
        t: their timesteps.
        s: the timesteps to go to; at ``t`` and below nothing is added.
        alphas_cumprod: alpha-bar of the schedule.

    Returns:
        The examples at s, at least in float32.

    Source:
        arXiv:2505.11777: re-noising x_t and not the estimate of x_0 is what keeps the distribution.

    Example:
        >>> abar, s = np.array([0.9, 0.5]), jnp.array([1, 1])
        >>> x = renoise(jax.random.key(0), jnp.ones((2, 3)), jnp.array([0, 1]), s, abar)
        >>> bool((x[0] == 1).any()), x[1].round(3).tolist()
        (False, [1.0, 1.0, 1.0])
    """
    x_t, table = at_least_float32("x_t", x_t), alpha_bar(alphas_cumprod)
    (alpha_t, inverse_snr_t), (alpha_s, inverse_snr_s) = (
        (at_timesteps(table**0.5, u, x_t.dtype), at_timesteps((1 - table) / table, u, x_t.dtype))
        for u in (t, s)
    )
    added = jnp.maximum(inverse_snr_s - inverse_snr_t, 0)
    noise = jax.random.normal(key, x_t.shape, x_t.dtype)
    return add_noise(x_t, noise, alpha_s / alpha_t, alpha_s * jnp.sqrt(added))


def pseudo_huber(
    pred: Float[Array, "..."], target: Float[Array, "..."], c: float = 1e-3
) -> Float[Array, "..."]:
    """The pseudo-Huber loss: quadratic near 0, linear from about c on.

    ``sqrt((pred - target)^2 + c^2) - c``

    Args:
        pred: predictions.
        target: what they should be, of the same shape.
        c: where the loss turns linear, above 0.

    Returns:
        One value for each element, at least in float32.

    Raises:
        ValueError: shapes that differ, or a c that is not positive.

    Source:
        arXiv:2505.11777, its code; Song and Dhariwal 2023, arXiv:2310.14189, Section 3.3.

    Example:
        >>> pseudo_huber(jnp.array([3.0]), jnp.array([0.0]), 4.0).tolist()
        [1.0]
    """
    check_positive(c=c)
    pred, target = at_least_float32("pred", pred), at_least_float32("target", target)
    same_shape("target", target, "pred", pred)
    return jnp.sqrt(jnp.square(pred - target) + c**2) - c


def self_npo_loss(
    params: Any,
    teacher: Any,
    batch: Mapping[str, Any],
    key: PRNGKeyArray,
    denoise: ParametricDenoise,
    alphas_cumprod: Float[ArrayLike, " timesteps"],
    *,
    null_cond: Any = None,
    guidance: float = -1.0,
    steps: int = 5,
    grid_steps: int = 25,
    start: Literal["data", "noise"] = "data",
    loss: Literal["huber", "l2"] = "huber",
    huber: float = 1e-3,
    p_null: float = 0.0,
    prediction: Prediction = "epsilon",
) -> Float[Array, " batch"]:
    """Truncated diffusion fine-tuning: the student's error from a level s against the teacher's from t < s.

    ``mean loss(x0_student(x_s, s, c), y)``, with ``x_t, t, y`` of `truncated_rollout`, ``s ~ U{t+1..T-1}``
    and ``x_s`` of `renoise`

    Args:
        params: the student's parameters.
        teacher: the teacher's; no gradient flows into them.
        batch: ``"x"`` ``[B, ...]``, data, of which ``start="noise"`` reads the shape alone, and ``"cond"``, a
            tree with B rows, or None.
        key: for all that is random: in this order index, noise of the start, s, noise of `renoise`, dropped
            conditions.
        denoise: ``(params, x [B, ...], t [B], cond) -> prediction``.
        alphas_cumprod: alpha-bar of the schedule, best in float64 on the host.
        null_cond: what stands for no condition, a tree that broadcasts to ``cond``.
        guidance: w of the teacher: -1 as in the code for SD1.5, -5 for SDXL, 0 as in the paper's text.
        steps: number of jumps, K; at least 1 with ``start="noise"``.
        grid_steps: number of levels of the DDIM grid, S.
        start: "data": data noised to a level of the grid, as the code does. "noise": pure noise at T-1, from
            which the K jumps lead to that level, so that no data are needed.
        loss: "huber", the pseudo-Huber loss, or "l2", the squared error.
        huber: c of the pseudo-Huber loss.
        p_null: probability that the student is given no condition, in [0, 1].
        prediction: what the networks predict.

    Returns:
        One value for each example, the mean over its elements.

    Raises:
        ValueError: an unknown start or loss, a number out of its range, an empty batch, or a null condition
            that does not fit.

    Source:
        arXiv:2505.11777 and its code; ``start="noise"`` is our reading of the paper's text.

    Example:
        >>> denoise = lambda w, x, t, c: w * x
        >>> batch = {"x": jnp.ones((4, 3)), "cond": jnp.zeros(4, int)}
        >>> abar = np.linspace(0.99, 0.01, 1000)
        >>> self_npo_loss(0.1, 0.1, batch, jax.random.key(0), denoise, abar, null_cond=1).shape
        (4,)
    """
    one_of("start", start, ("data", "noise"))
    one_of("loss", loss, ("huber", "l2"))
    if start == "noise" and steps < 1:
        raise ValueError(f"steps: expected at least 1 with start='noise', got {steps}")
    x, cond = at_least_float32("batch['x']", batch["x"]), batch["cond"]
    if not x.size:
        raise ValueError(f"batch['x']: expected at least one example, got shape {x.shape}")
    table = alpha_bar(alphas_cumprod)
    levels, examples = len(table), x.shape[:1]
    grid = ddim_grid(table, grid_steps)
    index_key, start_key, time_key, noise_key, null_key = jax.random.split(key, 5)
    index = beside(jax.random.randint(index_key, examples, 0, grid_steps), x)
    noise = jnp.zeros_like(x) + jax.random.normal(start_key, x.shape, x.dtype)

    def frozen(x: Array, t: Array, cond: Any) -> Array:
        return denoise(jax.lax.stop_gradient(teacher), x, t, cond)

    if start == "data":
        x_t = add_noise(x, noise, *_level(grid.alphas_cumprod, index, x.dtype))
        rolled = truncated_rollout(
            frozen, x_t, cond, null_cond, index, grid, steps, guidance, prediction=prediction
        )
    else:
        path = _path_from_noise(at_timesteps(grid.timesteps, index, index.dtype), levels, steps)
        at_path = _level(table, path, x.dtype)
        rolled = _rollout(frozen, noise, cond, null_cond, path, at_path, guidance, prediction)
    x_t, t, target = rolled

    s = jnp.minimum(jax.random.randint(time_key, examples, t + 1, levels), levels - 1)
    x_s = renoise(noise_key, x_t, t, s, table)
    seen = drop_condition(null_key, cond, null_cond, p_null)
    output = denoise(params, x_s, s, seen)
    estimate = predict_x0(output, x_s, *_level(table, s, x_s.dtype), prediction)
    error = pseudo_huber(estimate, target, huber) if loss == "huber" else jnp.square(estimate - target)
    return jnp.mean(error, axis=range(1, error.ndim))


def init_self_npo(params: Any, tx: optax.GradientTransformation, key: PRNGKeyArray) -> SelfNPOState:
    """The state before the first step: the teacher is the student.

    ``teacher = params``

    Args:
        params: parameters of the base model.
        tx: the optax transformation that `self_npo_step` gets.
        key: random key of the whole run.

    Returns:
        The state. The teacher is a copy in float32 at least, in which a moving average can move.

    Source:
        arXiv:2505.11777, its code.

    Example:
        >>> int(init_self_npo({"w": jnp.ones(3)}, optax.sgd(0.1), jax.random.key(0)).step)
        0
    """
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), params)
    teacher = jax.tree.map(lambda leaf: jnp.copy(wide(leaf)), params)
    return SelfNPOState(jnp.zeros((), jnp.int32), params, teacher, tx.init(params), key)


def self_npo_step(
    tx: optax.GradientTransformation,
    denoise: ParametricDenoise,
    alphas_cumprod: Float[ArrayLike, " timesteps"],
    *,
    ema: float = 0.999,
    **options: Any,
) -> Callable[[SelfNPOState, Mapping[str, Any]], tuple[SelfNPOState, dict[str, Array]]]:
    """A pure step of truncated diffusion fine-tuning, for ``jit``, ``jaxneg.train.shard_step`` and ``fit``.

    ``params <- params + tx(grad mean_b L_b);  teacher <- ema teacher + (1 - ema) params``

    Args:
        tx: an optax transformation; the official one is ``chain(clip_by_global_norm(1.0), adamw(1e-6))``.
        denoise: ``(params, x [B, ...], t [B], cond) -> prediction``.
        alphas_cumprod: alpha-bar of the schedule, best in float64 on the host.
        ema: decay of the teacher, in [0, 1].
        **options: those of `self_npo_loss`.

    Returns:
        ``step(state, batch) -> (state, metrics)``, with ``loss``, ``grad_norm`` and ``update_norm``. The
        random key of step n is ``fold_in(state.key, n)``.

    Raises:
        ValueError: ``ema`` outside [0, 1]; and from the step, as `self_npo_loss`.

    Source:
        arXiv:2505.11777 and its code.

    Example:
        >>> tx, abar = optax.sgd(0.1), np.linspace(0.99, 0.01, 1000)
        >>> step = self_npo_step(tx, lambda w, x, t, c: w * x, abar)
        >>> state = init_self_npo(jnp.array(0.1), tx, jax.random.key(0))
        >>> state, metrics = step(state, {"x": jnp.ones((4, 3)), "cond": None})
        >>> int(state.step), metrics["loss"].shape
        (1, ())
    """
    check_range("ema", ema, 0, 1)

    def step(state: SelfNPOState, batch: Mapping[str, Any]) -> tuple[SelfNPOState, dict[str, Array]]:
        key = jax.random.fold_in(state.key, state.step)
        teacher = jax.tree.map(lambda average, leaf: average.astype(leaf.dtype), state.teacher, state.params)

        def mean_loss(params: Any) -> Array:
            return jnp.mean(self_npo_loss(params, teacher, batch, key, denoise, alphas_cumprod, **options))

        loss, grads = jax.value_and_grad(mean_loss)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(jax.tree.map(wide, params), state.teacher, 1 - ema)
        metrics = {"loss": loss, "grad_norm": wide_norm(grads), "update_norm": wide_norm(updates)}
        return SelfNPOState(state.step + 1, params, average, opt_state, state.key), metrics

    return step


def _rollout(
    denoise: Denoise,
    x: Array,
    cond: Any,
    null_cond: Any,
    path: Int[Array, "levels batch"],
    levels: tuple[Float[Array, "levels batch"], Float[Array, "levels batch"]],
    guidance: float,
    prediction: Prediction,
) -> tuple[Array, Array, Array]:
    """DDIM along each example's own path of timesteps, and the clean estimate at its end."""
    guided = _guided(denoise, cond, null_cond, guidance)

    def next_of(rows: Array) -> Array:
        return jnp.concatenate([rows[1:], rows[-1:]])

    alpha, sigma = levels
    moves = next_of(path) < path  # nowhere at the end: the last call only looks

    def visit(carry: tuple[Array, Array], level: Any) -> tuple[tuple[Array, Array], None]:
        x, _ = carry
        t, alpha, sigma, next_alpha, next_sigma, moves = level
        output = checked_output(guided(x, t), x)
        x0 = predict_x0(output, x, alpha, sigma, prediction)
        noise = predict_noise(output, x, alpha, sigma, prediction)
        ahead = add_noise(x0, noise, next_alpha, next_sigma)
        moves = jnp.zeros_like(x, bool) | moves.reshape(-1, *[1] * (x.ndim - 1))
        return (jnp.where(moves, ahead, x), x0), None

    visits = (path, alpha, sigma, next_of(alpha), next_of(sigma), moves)
    (x, target), _ = jax.lax.scan(visit, (x, jnp.zeros_like(x)), visits)
    return jax.lax.stop_gradient(x), path[-1], jax.lax.stop_gradient(target)


def _guided(denoise: Denoise, cond: Any, null_cond: Any, guidance: float) -> Callable[[Array, Array], Array]:
    """The teacher's guided prediction, from one branch where the other has no weight."""
    known = isinstance(guidance, int | float)  # a traced one may be anything
    if (known and guidance == 0) or not jax.tree.leaves(cond):
        return lambda x, t: denoise(x, t, cond)
    null = null_like(null_cond, cond)
    if known and guidance == -1:
        return lambda x, t: denoise(x, t, null)
    guided = guide(denoise, scale=guidance + 1, null_cond=null)
    return lambda x, t: guided(x, t, cond)


def _path_from_noise(end: Int[Array, " batch"], levels: int, steps: int) -> Int[Array, "levels batch"]:
    """``round(linspace(T - 1, end, steps + 1))`` of each example."""
    gone = jnp.arange(steps + 1)[:, None] * (levels - 1 - end) / steps
    return jnp.round(levels - 1 - gone).astype(end.dtype)


def _level(
    alphas_cumprod: ArrayLike, index: Int[Array, "..."], dtype: Any
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Alpha and sigma at some entries of a table of alpha-bar."""
    table: Any = alphas_cumprod
    return at_timesteps(table**0.5, index, dtype), at_timesteps((1 - table) ** 0.5, index, dtype)
