"""Weightings that read the losses alone: equal, random, average change, uncertainty, impartial, smooth
maximum, logarithmic, FAMO.

Scalarisers (`si`, `gls`, `uw`, `imtl_l`, `stch`, `famo_loss`) take the losses ``[T]`` of one step and return
one number to differentiate; weightings (`equal_weights`, `rlw_weights`, `dwa_weights`) return constants
``[T]``.

Papers: GLS, arXiv:1904.08492; RLW, arXiv:2111.10603; DWA, arXiv:1803.10704, Section 3.2; uncertainty
weighting, arXiv:1705.07115, Section 3.2; FAMO, arXiv:2306.03792, Algorithm 1. Scale invariance:
arXiv:2202.01017, Section 5. IMTL-L: Liu et al., "Towards Impartial Multi-task Learning" (ICLR 2021). STCH:
arXiv:2402.19078.
"""

import chex
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

# The least that a logarithm is taken of: a loss that has fallen to zero, or below, stops there.
_LOG_FLOOR = 1e-8


def equal_weights(T: int) -> Float[Array, " tasks"]:
    """Equal weighting: the sum of the losses.

    ``w_i = 1``.

    Args:
        T: number of tasks.

    Returns:
        Ones, ``[T]``.

    Raises:
        ValueError: T below 1.

    Example:
        >>> equal_weights(2).tolist()
        [1.0, 1.0]
    """
    return jnp.ones(_checked_count(T))


def si(L: Float[Array, " tasks"]) -> Float[Array, ""]:
    """Scale-invariant scalarisation: rescaling a loss does not change its gradient.

    ``sum_i log L_i``

    Args:
        L: losses ``[T]``, positive (below 1e-8 they count as 1e-8).

    Returns:
        A scalar.

    Raises:
        ValueError: L that is not ``[T]`` with T >= 1.

    Source:
        arXiv:2202.01017, Section 5 (the SI baseline).

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(si(jnp.array([2.0, 0.5]))), 4)
        0.0
    """
    return jnp.sum(jnp.log(jnp.maximum(_checked_losses("L", L), _LOG_FLOOR)))


def gls(L: Float[Array, " tasks"]) -> Float[Array, ""]:
    """Geometric loss strategy: the geometric mean of the losses.

    ``(prod_i L_i)^(1/T)``; its gradient weights task i by ``GLS / (T L_i)``.

    Args:
        L: losses ``[T]``, positive (below 1e-8 they count as 1e-8).

    Returns:
        A scalar.

    Raises:
        ValueError: L that is not ``[T]`` with T >= 1.

    Source:
        arXiv:1904.08492, Equation 3.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(gls(jnp.array([2.0, 8.0]))), 4)
        4.0
    """
    return jnp.exp(jnp.mean(jnp.log(jnp.maximum(_checked_losses("L", L), _LOG_FLOOR))))


def uw(L: Float[Array, " tasks"], s: Float[Array, " tasks"]) -> Float[Array, ""]:
    """Uncertainty weighting with learned log-variances.

    ``sum_i (exp(-s_i) L_i + s_i) / 2``; s is learned with the model, ``d/ds_i = (1 - exp(-s_i) L_i) / 2``.

    Args:
        L: losses ``[T]``.
        s: ``[T]``, the logarithms of the tasks' variances; start at 0.

    Returns:
        A scalar.

    Raises:
        ValueError: L that is not ``[T]`` with T >= 1, or s of another shape.

    Source:
        arXiv:1705.07115, Section 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> float(uw(jnp.array([1.0, 3.0]), jnp.zeros(2)))
        2.0
    """
    L = _checked_losses("L", L)
    _same_shape("s", s, L)
    return 0.5 * jnp.sum(jnp.exp(-s) * L + s)


def imtl_l(L: Float[Array, " tasks"], s: Float[Array, " tasks"]) -> Float[Array, ""]:
    """Impartial losses: all scaled losses learn to be 1.

    ``sum_i (exp(s_i) L_i - s_i)``; s is learned with the model, ``d/ds_i = exp(s_i) L_i - 1``. It is twice
    `uw` with -s.

    Args:
        L: losses ``[T]``.
        s: ``[T]``, the logarithms of the scales; start at 0.

    Returns:
        A scalar.

    Raises:
        ValueError: L that is not ``[T]`` with T >= 1, or s of another shape.

    Source:
        Liu et al., "Towards Impartial Multi-task Learning" (ICLR 2021), IMTL-L.

    Example:
        >>> import jax.numpy as jnp
        >>> float(imtl_l(jnp.array([1.0, 3.0]), jnp.zeros(2)))
        4.0
    """
    L = _checked_losses("L", L)
    _same_shape("s", s, L)
    return jnp.sum(jnp.exp(s) * L - s)


def stch(
    L: Float[Array, " tasks"],
    mu: float = 1.0,
    pref: Float[Array, " tasks"] | None = None,
    ref: Float[Array, " tasks"] | float = 0.0,
) -> Float[Array, ""]:
    """Smooth Tchebycheff scalarisation: a smooth maximum of the preferred distances to a reference.

    ``mu log sum_i exp(p_i (L_i - z_i) / mu)``; as mu goes to 0, ``max_i p_i (L_i - z_i)``.

    Args:
        L: losses ``[T]``.
        mu: smoothing, positive.
        pref: preference p ``[T]``; 1/T each where None.
        ref: the ideal losses z, ``[T]`` or one number.

    Returns:
        A scalar.

    Raises:
        ValueError: L that is not ``[T]`` with T >= 1, pref or ref of another shape, or mu <= 0.

    Source:
        arXiv:2402.19078, the smooth Tchebycheff scalarization.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(stch(jnp.array([1.0, 3.0]), mu=0.01)), 4)
        1.5
    """
    L = _checked_losses("L", L)
    if pref is not None:
        _same_shape("pref", pref, L)
    if jnp.ndim(ref):
        _same_shape("ref", jnp.asarray(ref), L)
    if mu <= 0:
        raise ValueError(f"mu: expected a positive number, got {mu}")
    pref = jnp.asarray(1 / L.shape[0] if pref is None else pref, L.dtype)
    return mu * jax.nn.logsumexp(pref * (L - ref) / mu)


def stch_log(L: Float[Array, " tasks"], nadir: Float[Array, " tasks"], mu: float = 1.0) -> Float[Array, ""]:
    """Smooth Tchebycheff scalarisation of the logarithms of losses over their nadir, for training networks.

    ``T mu log sum_i exp(log(L_i / n_i) / mu)``; its gradient weights task i by ``T softmax(l / mu)_i / L_i``.

    Args:
        L: losses ``[T]``, positive.
        nadir: n ``[T]``, positive: the average losses of an epoch after the warm-up.
        mu: smoothing, positive.

    Returns:
        A scalar.

    Raises:
        ValueError: L that is not ``[T]`` with T >= 1, nadir of another shape, or mu <= 0.

    Source:
        The released code of arXiv:2402.19078 for deep multi-task learning.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(stch_log(jnp.array([1.0, 3.0]), jnp.array([1.0, 3.0]))), 4)
        1.3863
    """
    L = _checked_losses("L", L)
    _same_shape("nadir", nadir, L)
    if mu <= 0:
        raise ValueError(f"mu: expected a positive number, got {mu}")
    return L.shape[0] * mu * jax.nn.logsumexp(jnp.log(L / nadir + 1e-20) / mu)


def rlw_weights(key: jax.Array, T: int) -> Float[Array, " tasks"]:
    """Random loss weighting: fresh weights each step.

    ``w = softmax(z)``, ``z ~ N(0, I)``.

    Args:
        key: PRNG key.
        T: number of tasks.

    Returns:
        Positive weights ``[T]`` that sum to 1.

    Raises:
        ValueError: T below 1.

    Source:
        arXiv:2111.10603, Section 3.1.

    Example:
        >>> import jax
        >>> round(float(rlw_weights(jax.random.key(0), 3).sum()), 4)
        1.0
    """
    return jax.nn.softmax(jax.random.normal(key, (_checked_count(T),)))


def dwa_weights(history: Float[Array, "tasks epochs"], tau: float = 2.0) -> Float[Array, " tasks"]:
    """Dynamic weight average: more weight to the losses that fell least of late.

    ``w = T softmax((Lbar(e-1) / Lbar(e-2)) / tau)``, and ones while fewer than two epochs have passed.

    Args:
        history: ``[T, e]``, the average loss of each epoch that has passed, oldest first.
        tau: temperature, positive.

    Returns:
        Weights for epoch e, ``[T]``, which sum to T.

    Raises:
        ValueError: a history that is not ``[T, e]`` with T >= 1, or tau <= 0.

    Source:
        arXiv:1803.10704, Equation 7.

    Example:
        >>> import jax.numpy as jnp
        >>> dwa_weights(jnp.array([[2.0, 1.0], [2.0, 1.0]])).tolist()
        [1.0, 1.0]
    """
    if history.ndim != 2 or history.shape[0] == 0:
        raise ValueError(f"history: expected shape [T, epochs] with T >= 1, got {history.shape}")
    if tau <= 0:
        raise ValueError(f"tau: expected a positive temperature, got {tau}")
    tasks, epochs = history.shape
    if epochs < 2:
        return jnp.ones(tasks, history.dtype)
    return tasks * jax.nn.softmax(history[:, -1] / history[:, -2] / tau)


def famo_loss(
    L: Float[Array, " tasks"],
    xi: Float[Array, " tasks"],
    min_losses: float | Float[Array, " tasks"] = 0.0,
    eps: float = 1e-8,
) -> Float[Array, ""]:
    """FAMO's loss: a weighted sum of log losses whose gradient weights sum to 1.

    ``c sum_i z_i log D_i`` with ``z = softmax(xi)``, ``D = L - b + eps`` and the constant ``c = 1 / sum_i
    (z_i / D_i)``.

    Args:
        L: losses ``[T]``, above ``min_losses``.
        xi: ``[T]``, the logits of the weights.
        min_losses: b, a lower bound of each loss.
        eps: added inside the logarithm.

    Returns:
        A scalar; differentiate with respect to the losses.

    Raises:
        ValueError: L that is not ``[T]`` with T >= 1, or xi of another shape.

    Source:
        arXiv:2306.03792, Algorithm 1 and Equation 10.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> weights = jax.grad(famo_loss)(jnp.array([1.0, 2.0]), jnp.zeros(2))
        >>> round(float(weights.sum()), 4)
        1.0
    """
    L = _checked_losses("L", L)
    _same_shape("xi", xi, L)
    weights = jax.nn.softmax(xi)
    above = jnp.maximum(L - min_losses + eps, eps)
    scale = jax.lax.stop_gradient(1 / jnp.sum(weights / above))
    return scale * jnp.sum(weights * jnp.log(above))


def famo_init(T: int, dtype: jax.typing.DTypeLike = jnp.float32) -> tuple[Array, optax.OptState]:
    """The start of FAMO's weights: zero logits and Adam's moments.

    Args:
        T: number of tasks.
        dtype: of the logits.

    Returns:
        ``(xi, opt_state)`` for `famo_update`.

    Raises:
        ValueError: T below 1.

    Source:
        arXiv:2306.03792, Algorithm 1.

    Example:
        >>> famo_init(3)[0].shape
        (3,)
    """
    xi = jnp.zeros(_checked_count(T), dtype)
    return xi, optax.scale_by_adam().init(xi)


def famo_update(
    xi: Float[Array, " tasks"],
    opt_state: optax.OptState,
    L_before: Float[Array, " tasks"],
    L_after: Float[Array, " tasks"],
    *,
    learning_rate: chex.Numeric = 0.025,
    gamma: chex.Numeric = 1e-3,
    min_losses: chex.Numeric = 0.0,
    eps: float = 1e-8,
) -> tuple[Float[Array, " tasks"], optax.OptState]:
    """One step of FAMO's logits, after the parameters have moved.

    ``delta_i = log(L_i - b_i + eps) - log(L'_i - b_i + eps)``; the gradient ``(diag(z) - z z^T) delta + gamma
    xi`` (the decay comes before Adam's moments) takes one Adam step (0.9, 0.999, 1e-8).

    Args:
        xi: ``[T]``.
        opt_state: Adam's moments, from `famo_init`.
        L_before: losses ``[T]`` at the parameters before the step.
        L_after: losses ``[T]`` on the same batch at the parameters after it.
        learning_rate: of the logits.
        gamma: weight decay of the logits.
        min_losses: b, a lower bound of each loss.
        eps: added inside the logarithm.

    Returns:
        ``(xi, opt_state)``.

    Raises:
        ValueError: L_before that is not ``[T]`` with T >= 1, or shapes that differ.

    Source:
        arXiv:2306.03792, Algorithm 1 and Equation 11.

    Example:
        >>> import jax.numpy as jnp
        >>> xi, opt_state = famo_init(2)
        >>> xi, opt_state = famo_update(xi, opt_state, jnp.array([1.0, 1.0]), jnp.array([0.5, 1.0]))
        >>> [round(float(x), 3) for x in xi]
        [-0.025, 0.025]
    """
    L_before = _checked_losses("L_before", L_before)
    _same_shape("L_after", L_after, L_before)
    _same_shape("xi", xi, L_before)
    log_before, log_after = (
        jnp.log(jnp.maximum(losses - min_losses + eps, eps)) for losses in (L_before, L_after)
    )
    delta = log_before - log_after
    weights = jax.nn.softmax(xi)
    gradient = (weights * (delta - weights @ delta) + gamma * xi).astype(xi.dtype)
    update, opt_state = optax.scale_by_adam().update(gradient, opt_state)
    return (xi - learning_rate * update).astype(xi.dtype), opt_state  # pyright: ignore[reportOperatorIssue]


def _checked_count(T: int) -> int:
    if T < 1:
        raise ValueError(f"T: expected at least one task, got {T}")
    return T


def _checked_losses(name: str, losses: Array) -> Array:
    losses = jnp.asarray(losses)
    if losses.ndim != 1 or losses.shape[0] == 0:
        raise ValueError(f"{name}: expected shape [T] with T >= 1, got {losses.shape}")
    return losses.astype(jnp.promote_types(losses.dtype, jnp.float32))


def _same_shape(name: str, array: Array, losses: Array) -> None:
    if jnp.shape(array) != losses.shape:
        raise ValueError(f"{name}: expected shape {losses.shape}, one for each task, got {jnp.shape(array)}")
