"""ANT: intervals of noise levels as the tasks of multi-task learning.

Go et al., "Addressing Negative Transfer in Diffusion Models", arXiv:2306.00354, Sections 3 and 4; the form of
uncertainty weighting and the stratified timesteps are those of the authors' code. `make_ant_loss` gives the
loss function of a train step: one loss for each interval, for an aggregator of task gradients (PCGrad,
Nash-MTL, ...) as the first link of the optax chain, or one number (uncertainty weighting, the plain mean).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.diffusion.arguments import Denoise, at_least_float32, at_timesteps
from jaxneg.diffusion.conditions import drop_condition
from jaxneg.diffusion.interval_clustering import checked_boundaries
from jaxneg.diffusion.losses import denoising_loss
from jaxneg.diffusion.predictions import Prediction
from jaxneg.diffusion.samplers import ddim_sample

Boundaries = Sequence[int] | np.ndarray | Array


def stratified_timesteps(
    key: PRNGKeyArray, boundaries: Boundaries, batch: int, *, proportional: bool = False
) -> Int[Array, " batch"]:
    """Timesteps drawn within each interval, the same number in every one.

    The first B/k examples get ``t ~ uniform{b_0, ..., b_1 - 1}``, the next B/k those of the second interval,
    and so on.

    Args:
        key: random key.
        boundaries: b ``[k + 1]``, concrete integers.
        batch: B.
        proportional: whether an interval gets as many examples as its length asks for instead, at least one
            (`interval_counts`); the authors' code does not.

    Returns:
        ``[B]``, int32.

    Raises:
        ValueError: boundaries that do not rise, a batch that k does not divide, or with ``proportional`` one
            smaller than k.

    Source:
        arXiv:2306.00354, Section 4.1; the authors' code.

    Example:
        >>> t = stratified_timesteps(jax.random.key(0), [0, 2, 10], 6)
        >>> (t < 2).tolist()
        [True, True, True, False, False, False]
    """
    found = checked_boundaries(boundaries)
    counts = interval_counts(found, batch, proportional=proportional)
    return _drawn(key, found, np.repeat(np.arange(len(counts)), counts))


def interval_counts(boundaries: Boundaries, batch: int, *, proportional: bool = False) -> tuple[int, ...]:
    """How many examples of a batch each interval gets.

    ``B / k``; with ``proportional`` the highest averages ``|I_i| / (2 n_i + 1)`` decide, after one for each.

    Args:
        boundaries: b ``[k + 1]``, concrete integers.
        batch: B.
        proportional: whether the counts follow the intervals' lengths.

    Returns:
        k numbers, at least 1, which sum to B.

    Raises:
        ValueError: as `stratified_timesteps`.

    Source:
        arXiv:2306.00354, Section 4.1; the proportional counts are this implementation's.

    Example:
        >>> interval_counts([0, 2, 10], 10), interval_counts([0, 2, 10], 10, proportional=True)
        ((5, 5), (2, 8))
    """
    lengths = np.diff(checked_boundaries(boundaries))
    k = len(lengths)
    if not proportional:
        if batch < 1 or batch % k:
            raise ValueError(f"batch: expected a multiple of the {k} intervals, got {batch}")
        return (batch // k,) * k
    if batch < k:
        raise ValueError(f"batch: expected at least one example for each of {k} intervals, got {batch}")
    counts = np.ones(k, int)
    for _ in range(batch - k):
        counts[np.argmax(lengths / (2 * counts + 1))] += 1
    return tuple(counts.tolist())


def cluster_losses(per_example: Float[Array, " batch"], k: int) -> Float[Array, " k"]:
    """The mean loss of each interval, of a batch in the order of `stratified_timesteps`.

    ``l_i = (k / B) sum_(b in interval i) L_b``

    Args:
        per_example: L ``[B]``, the intervals one after the other.
        k: number of intervals.

    Returns:
        ``[k]``, float32 at least. A loss that is not finite shows in its own interval alone.

    Raises:
        ValueError: losses that are not ``[B]``, or a batch that k does not divide.

    Source:
        arXiv:2306.00354, Section 4.1.

    Example:
        >>> cluster_losses(jnp.array([1.0, 3.0, 5.0, 5.0]), 2).tolist()
        [2.0, 5.0]
    """
    if per_example.ndim != 1:
        raise ValueError(f"per_example: expected one loss for each example, got shape {per_example.shape}")
    if k < 1 or per_example.size == 0 or per_example.size % k:
        raise ValueError(f"per_example: expected a multiple of k={k} losses, got {per_example.size}")
    return _interval_means(per_example, np.repeat(np.arange(k), per_example.size // k))


def uncertainty_weighted_loss(
    losses: Float[Array, " k"],
    log_scale: Float[Array, " k"],
    *,
    shares: Sequence[float] | np.ndarray | None = None,
) -> Float[Array, " k"]:
    """Uncertainty weighting of the intervals' losses; the sum is minimised, over the scales too.

    ``0.5 (exp(-s_i) l_i / k + s_i)``: where it is stationary, ``s_i = log(l_i / k)``, so that an interval
    weighs as 1 / l_i. Give s its own learning rate (0.025), never weight decay, and start at 0.

    Args:
        losses: l ``[k]``.
        log_scale: s ``[k]``, kept in float32 or more.
        shares: ``[k]``, what stands for 1 / k; None is 1 / k.

    Returns:
        ``[k]``, not reduced, float32 at least.

    Raises:
        ValueError: losses that are not ``[k]`` with k >= 1, or scales or shares of another shape.

    Source:
        arXiv:2306.00354, Section 4.3; the authors' ``UncertaintyWeighting``. After arXiv:1705.07115.

    Example:
        >>> uncertainty_weighted_loss(jnp.array([2.0, 4.0]), jnp.zeros(2)).tolist()
        [0.5, 1.0]
    """
    losses = at_least_float32("losses", losses)
    if losses.ndim != 1 or losses.size == 0:
        raise ValueError(f"losses: expected [k] with k >= 1, got shape {losses.shape}")
    log_scale = at_least_float32("log_scale", log_scale)
    if log_scale.shape != losses.shape:
        raise ValueError(f"log_scale: expected shape {losses.shape}, as losses, got {log_scale.shape}")
    if shares is None:
        return 0.5 * (jnp.exp(-log_scale) * (losses / losses.size) + log_scale)
    if np.shape(shares) != losses.shape:
        raise ValueError(f"shares: expected shape {losses.shape}, as losses, got {np.shape(shares)}")
    return 0.5 * (jnp.exp(-log_scale) * (losses * jnp.asarray(shares, losses.dtype)) + log_scale)


def make_ant_loss(
    denoise: Callable[[Any, Array, Array, Any], Array],
    boundaries: Boundaries,
    alphas_cumprod: Any,
    *,
    method: Literal["tasks", "linear", "uw"] = "tasks",
    weight: Any | None = None,
    prediction: Prediction = "epsilon",
    proportional: bool = False,
    pullback: Literal["stacked", "sequential", "whole"] = "stacked",
    null_cond: Any = None,
    cond_dropout: float = 0.0,
) -> Callable[[Any, Mapping[str, Any], PRNGKeyArray], tuple[Array, dict[str, Array]]]:
    """The loss function of a train step, for ``jaxneg.train.make_step`` or any loop.

    ``l_i = mean over the interval's examples of w_t |target - denoise(params, x_t, t, cond)|^2``.
    "tasks" gives l ``[k]``; "linear" their mean; "uw" the sum of `uncertainty_weighted_loss`, for parameters
    ``{"network": ..., "log_scale": [k]}``.

    The chains of the paper for "tasks", with k intervals and ``jaxneg.mtl``'s links:
    ``chain(multitask("pcgrad"), scale(1 / k), adamw(1e-4))`` and ``chain(nash_mtl(n_tasks=k), adamw(1e-4))``;
    for "uw" ``partition({"network": adamw(1e-4), "log_scale": adam(0.025)}, {"network": "network",
    "log_scale": "log_scale"})``. One interval with "linear" is ordinary training, uniform in its timesteps:
    ``[0, T]`` for the whole network, ``[t_1, t_2]`` for a specialist.

    Example b of a batch is in interval b mod k: on a mesh that shards the batch every device then holds the
    same share of every interval, and only the k means cross it.

    Args:
        denoise: ``(params, x [B, ...], t [B], cond) -> [B, ...]``, one example independent of the others
            (but see ``pullback``).
        boundaries: b ``[k + 1]``, concrete integers in 0..T.
        alphas_cumprod: ``[T]``.
        method: "tasks", "linear" or "uw".
        weight: w ``[T]``, as `min_snr_weight` or `p2_weight` give it; None is 1.
        prediction: what the network predicts: "epsilon", "x0" or "v".
        proportional: whether the intervals get examples, and weights, in proportion to their lengths; not for
            "tasks". The examples of an interval then follow each other.
        pullback: how "tasks" takes gradients. An interval's loss depends on its own examples alone, so that
            all the gradients together cost one backward pass: with "stacked" all intervals at once, with
            "sequential" one after the other, which convolutions need. "whole" is for networks in which
            examples meet: each loss that is pulled back costs a pass over the whole batch.
        null_cond: the null condition of classifier-free guidance, as `drop_condition` takes it.
        cond_dropout: how often it replaces the condition.

    Returns:
        ``loss_fn(params, batch, key) -> (loss, aux)``. The batch is ``{"x0": [B, ...]}`` with "cond" where
        the network has conditions, and "t" ``[B]`` and "noise" where these are not to be drawn (they must
        then follow the examples' intervals). With "linear" and "uw" aux holds "losses" l ``[k]``; with "uw"
        also "weights" ``[k]``, ``0.5 exp(-s)``. A loop that stops at the first metric that is not finite
        can so name the interval. No gradient reaches the batch.

    Raises:
        ValueError: an unknown method or pullback, boundaries that do not rise or exceed T, weights of another
            length; while tracing, a batch without "x0" (or "cond", if it is to be dropped) or of a size that
            k does not divide, or parameters without "log_scale" ``[k]``.

    Source:
        arXiv:2306.00354, Section 4.

    Example:
        >>> loss_fn = make_ant_loss(lambda w, x, t, cond: x * w, [0, 5, 10], jnp.linspace(0.9, 0.1, 10))
        >>> losses, aux = loss_fn(jnp.ones(3), {"x0": jnp.ones((4, 3))}, jax.random.key(0))
        >>> losses.shape
        (2,)
    """
    if method not in ("tasks", "linear", "uw"):
        raise ValueError(f"method: expected 'tasks', 'linear' or 'uw', got {method!r}")
    if pullback not in ("stacked", "sequential", "whole"):
        raise ValueError(f"pullback: expected 'stacked', 'sequential' or 'whole', got {pullback!r}")
    if method == "tasks" and proportional:
        raise ValueError("proportional: expected False for 'tasks', whose intervals have equal counts")
    limits = checked_boundaries(boundaries)
    k, T = len(limits) - 1, np.shape(alphas_cumprod)[0]
    if limits[-1] > T:
        raise ValueError(f"boundaries: expected to end at {T} timesteps at most, got {limits[-1]}")
    if weight is not None and np.shape(weight) != (T,):
        raise ValueError(f"weight: expected one for each of {T} timesteps, got shape {np.shape(weight)}")
    shares = np.diff(limits) / (limits[-1] - limits[0]) if proportional else np.full(k, 1 / k)

    def example_losses(params: Any, examples: Mapping[str, Any]) -> Array:
        t = examples["t"]
        return denoising_loss(
            partial(denoise, params),
            examples["x0"],
            t,
            examples["noise"],
            alphas_cumprod,
            cond=examples.get("cond"),
            prediction=prediction,
            weight=None if weight is None else at_timesteps(weight, t, float),
        )

    def loss_fn(params: Any, batch: Mapping[str, Any], key: PRNGKeyArray) -> tuple[Array, dict[str, Array]]:
        if "x0" not in batch:
            raise ValueError(f"batch: expected 'x0', and 'cond' if there are conditions, got {sorted(batch)}")
        size = len(batch["x0"])
        counts = interval_counts(limits, size, proportional=proportional)
        interval = np.repeat(np.arange(k), counts) if proportional else np.arange(size) % k
        examples = _completed(batch, key, limits, interval)
        if cond_dropout:
            if "cond" not in batch:
                raise ValueError(
                    f"batch: expected 'cond' with cond_dropout={cond_dropout}, got {sorted(batch)}"
                )
            kept = drop_condition(jax.random.fold_in(key, 2), batch["cond"], null_cond, cond_dropout)
            examples = {**examples, "cond": kept}
        examples = jax.lax.stop_gradient(examples)
        if method == "tasks" and pullback != "whole":
            parts = jax.tree.map(partial(_by_interval, k), examples)
            of_parts = _task_losses(lambda p, part: jnp.mean(example_losses(p, part)), pullback)
            return of_parts(params, parts), {}
        network = params if method != "uw" else _uw_part(params, "network", k)
        losses = _interval_means(example_losses(network, examples), interval)
        if method == "tasks":
            return losses, {}
        if method == "linear":
            return jnp.sum(losses * jnp.asarray(shares, losses.dtype)), {"losses": losses}
        log_scale = at_least_float32("log_scale", _uw_part(params, "log_scale", k))
        terms = uncertainty_weighted_loss(losses, log_scale, shares=shares)
        return jnp.sum(terms), {"losses": losses, "weights": 0.5 * jnp.exp(-log_scale)}

    return loss_fn


def negative_transfer_gap(score_specialist: Any, score_multitask: Any) -> Any:
    """How much better a specialist of an interval is than the network that learns all of them.

    ``NTG(I) = score(specialist in I, the multi-task network elsewhere) - score(multi-task everywhere)``

    Args:
        score_specialist: lower is better: the Frechet distance of samples of `sample_with_specialist`, or the
            specialist's mean loss on given examples, noise and timesteps of I. A number or an array.
        score_multitask: of the multi-task network, from the same initial noise, or on the same examples.

    Returns:
        The gap; below 0 there is negative transfer.

    Source:
        arXiv:2306.00354, Section 3 (second observation); for losses, this implementation's.

    Example:
        >>> negative_transfer_gap(9.0, 10.0)
        -1.0
    """
    return score_specialist - score_multitask


def with_specialist(denoise: Denoise, specialist: Denoise, interval: Sequence[int]) -> Denoise:
    """A denoiser that asks a specialist in its interval, and the multi-task network elsewhere.

    Where all examples are at the same timestep, as in a sampler, only the network that is asked runs.

    Args:
        denoise: the multi-task network, ``(x, t, cond) -> [B, ...]``.
        specialist: the specialist, likewise.
        interval: ``(begin, end)``, the timesteps from begin to end - 1.

    Returns:
        The denoiser.

    Raises:
        ValueError: an interval that is not two rising integers.

    Source:
        arXiv:2306.00354, Section 3.

    Example:
        >>> mixed = with_specialist(lambda x, t, cond: x, lambda x, t, cond: -x, (5, 10))
        >>> mixed(jnp.ones(2), jnp.array([4, 5]), None).tolist()
        [1.0, -1.0]
    """
    begin, end = _checked_interval(interval)

    def mixed(x: Array, t: Array, cond: Any = None) -> Array:
        inside = (t >= begin) & (t < end)

        def both() -> Array:
            chosen = inside.reshape(-1, *(1,) * (x.ndim - 1))
            return jnp.where(chosen, specialist(x, t, cond), denoise(x, t, cond))

        which = jnp.any(inside).astype(jnp.int32) + jnp.all(inside).astype(jnp.int32)
        return jax.lax.switch(which, (lambda: denoise(x, t, cond), both, lambda: specialist(x, t, cond)))

    return mixed


def sample_with_specialist(
    denoise: Denoise,
    specialist: Denoise,
    interval: Sequence[int],
    x_T: Array,
    timesteps: Any,
    alphas_cumprod: Any,
    **options: Any,
) -> Array:
    """DDIM samples in which a specialist takes the steps of its interval.

    `ddim_sample` of `with_specialist`; other samplers take the denoiser of `with_specialist` as well.

    Args:
        denoise: the multi-task network, ``(x, t, cond) -> [B, ...]``.
        specialist: the specialist, likewise.
        interval: ``(begin, end)``, the timesteps from begin to end - 1.
        x_T: initial noise ``[B, ...]``, the same as for the samples to compare with.
        timesteps: falling ``[S]``.
        alphas_cumprod: ``[T]``.
        **options: of `ddim_sample`.

    Returns:
        Samples ``[B, ...]``.

    Raises:
        ValueError: as `with_specialist` and `ddim_sample`.

    Source:
        arXiv:2306.00354, Section 3.

    Example:
        >>> zero = lambda x, t, cond: jnp.zeros_like(x)
        >>> abar = jnp.linspace(0.9, 0.1, 10)
        >>> sample_with_specialist(zero, zero, (5, 10), jnp.ones((2, 3)), jnp.array([9, 4, 0]), abar).shape
        (2, 3)
    """
    return ddim_sample(
        with_specialist(denoise, specialist, interval), x_T, timesteps, alphas_cumprod, **options
    )


def _task_losses(loss: Callable[[Any, Any], Array], pullback: str) -> Callable[[Any, Any], Array]:
    """Losses ``[k]`` of parts ``[k, ...]``, whose gradients together cost one backward pass.

    Pulled back one by one, each loss would cost a pass over all parts: the gradient of what it does not
    depend on is zero, but computed.
    """

    @jax.custom_vjp
    def losses(params: Any, parts: Any) -> Array:
        if pullback == "stacked":
            return jax.vmap(loss, (None, 0))(params, parts)
        return jnp.stack([loss(params, part) for part in _unstacked(parts)])

    def forward(params: Any, parts: Any) -> tuple[Array, Any]:
        both = jax.value_and_grad(loss)
        if pullback == "stacked":
            return jax.vmap(both, (None, 0))(params, parts)
        found = [both(params, part) for part in _unstacked(parts)]
        return jax.tree.map(lambda *rows: jnp.stack(rows), *found)

    def backward(jacobian: Any, cotangent: Array) -> tuple[Any, None]:
        def combined(leaf: Array) -> Array:
            weights = cotangent.astype(jnp.promote_types(leaf.dtype, jnp.float32))
            product = partial(jnp.tensordot, axes=1, precision=jax.lax.Precision.HIGHEST)
            return product(weights, leaf.astype(weights.dtype)).astype(leaf.dtype)

        return jax.tree.map(combined, jacobian), None

    losses.defvjp(forward, backward)
    return losses


def _unstacked(parts: Any) -> list[Any]:
    count = len(jax.tree.leaves(parts)[0])
    return [jax.tree.map(lambda leaf, place=place: leaf[place], parts) for place in range(count)]


def _by_interval(k: int, leaf: Array) -> Array:
    """``[B, ...]`` as ``[k, B / k, ...]``: example b goes to interval b mod k, without leaving its device."""
    return jnp.swapaxes(leaf.reshape(-1, k, *leaf.shape[1:]), 0, 1)


def _interval_means(per_example: Array, interval: np.ndarray) -> Array:
    counts = np.bincount(interval)
    own = interval[:, None] == np.arange(len(counts))
    values = at_least_float32("per_example", per_example)[:, None]
    return jnp.sum(jnp.where(own, values, 0), axis=0) / jnp.asarray(counts, values.dtype)


def _drawn(key: PRNGKeyArray, limits: np.ndarray, interval: np.ndarray) -> Array:
    return jax.random.randint(key, interval.shape, limits[interval], limits[interval + 1], jnp.int32)


def _completed(
    batch: Mapping[str, Any], key: PRNGKeyArray, limits: np.ndarray, interval: np.ndarray
) -> dict[str, Any]:
    """The batch with timesteps and noise."""
    x0 = batch["x0"]
    t = batch.get("t")
    noise = batch.get("noise")
    if t is None:
        t = _drawn(jax.random.fold_in(key, 0), limits, interval)
    elif t.shape != interval.shape:
        raise ValueError(f"batch['t']: expected shape {interval.shape}, one for each example, got {t.shape}")
    if noise is None:
        noise = jax.random.normal(jax.random.fold_in(key, 1), x0.shape, x0.dtype)
    cond = {"cond": batch["cond"]} if "cond" in batch else {}
    return {"x0": x0, "t": t, "noise": noise, **cond}


def _uw_part(params: Any, name: str, k: int) -> Any:
    if not isinstance(params, Mapping) or params.keys() != {"network", "log_scale"}:
        raise ValueError(
            "params: expected {'network': ..., 'log_scale': [k]} for 'uw', got"
            f" {sorted(params) if isinstance(params, Mapping) else type(params).__name__}"
        )
    if name == "log_scale" and jnp.shape(params[name]) != (k,):
        raise ValueError(f"params['log_scale']: expected shape ({k},), got {jnp.shape(params[name])}")
    return params[name]


def _checked_interval(interval: Sequence[int]) -> tuple[int, int]:
    if len(interval) != 2 or not interval[0] < interval[1]:
        raise ValueError(f"interval: expected (begin, end) with begin < end, got {tuple(interval)}")
    return int(interval[0]), int(interval[1])
