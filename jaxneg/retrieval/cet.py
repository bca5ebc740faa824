"""CET: a relevance model and a selection model, each weighing the other's negatives.

Paper: Cai et al., "Hard Negatives or False Negatives: Correcting Pooling Bias in Training Neural Ranking
Models", CIKM 2022, arXiv:2209.05072. A label says *selected and relevant*: annotators saw only what some
basic retriever pooled, so that an unlabelled document may be relevant. The relevance model R, which is kept,
and the selection model S learn from the same (query, positive, negative) triples, and each gives the other
inverse propensity weights of the negatives. Loss, weights and the order of the updates are those of the
official code (caiyinqiong/Coupled_Estimation_Technique: ``modeling.py``, ``train.py``); the paper's equation
numbers were not available.

With the same inputs for both nothing but random heads and dropout tells R from S: they tend to the same
function, and the weights of false negatives rise instead of falling. ``inputs="shared"`` is the official
behaviour; ``inputs="separate"`` (*ours*, the default) gives S what the pooling process saw (retriever score,
rank, query-term coverage, length) and R the content. ``normalise``, ``center`` and ``positive_ips`` are ours
too.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.retrieval.arguments import one_of
from jaxneg.retrieval.masked import at_least_float32

NORMALISATIONS = ("none", "mean")
INPUTS = ("separate", "shared")
WEIGHTINGS = ("coupled", "constant", "none")

Score = Callable[..., Float[Array, "rows"]]
"""``(params, inputs) -> scores``, or ``(params, inputs, key)`` where there is dropout: None turns it off."""


def ips_weight(
    neg_score: Float[Array, "*pairs"], tau: float | Array, *, clip: float | None = None
) -> Float[Array, "*pairs"]:
    """Inverse propensity weight of an unlabelled document.

    w = 1 / (1 - sigmoid(f(d-) / tau)) = 1 + exp(f(d-) / tau)

    Args:
        neg_score: the other model's score of the negative, a logit.
        tau: temperature of the score, above 0 (``debias_ratio`` of the official code).
        clip: largest exponent; None: 80 in float32 and 640 in float64, just below what they can hold.

    Returns:
        Weights of at least 1, through which no gradient flows; NaN where the score is NaN.

    Raises:
        ValueError: a tau that is not positive, a clip that is not a number.

    Source:
        ``modeling.py`` of the official code; the right-hand form is exact where the left one overflows.

    Example:
        >>> [round(float(w), 3) for w in ips_weight(jnp.array([0.0, 2.0]), 2.0)]
        [2.0, 3.718]
    """
    _check_tau(tau)
    return 1.0 + _bounded_exp(jax.lax.stop_gradient(at_least_float32(neg_score)) / tau, clip)


def pairwise_ce(pos: Float[Array, "*pairs"], neg: Float[Array, "*pairs"]) -> Float[Array, "*pairs"]:
    """Two-way softmax cross-entropy with the positive as the right class, one value a pair.

    l = -log(exp f(d+) / (exp f(d+) + exp f(d-))) = softplus(f(d-) - f(d+))

    Args:
        pos: scores of the positives.
        neg: scores of the negatives.

    Returns:
        Losses, in float32 at least.

    Raises:
        ValueError: shapes that differ.

    Source:
        ``modeling.py`` of the official code.

    Example:
        >>> round(float(pairwise_ce(jnp.array(1.0), jnp.array(1.0))), 4)
        0.6931
    """
    pos, neg = at_least_float32(pos), at_least_float32(neg)
    _same_shape("neg", neg, "pos", pos)
    return jax.nn.softplus(neg - pos)


def weighted_pairwise_loss(
    pos: Float[Array, "pairs"], neg: Float[Array, "pairs"], w: Float[Array, "pairs"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The objective of one model: the weighted mean over the pairs, and the plain one for the log.

    L = 1/B sum_i w_i softplus(f(d_i-) - f(d_i+))

    The sum is divided by the number of pairs, not by the sum of the weights.

    Args:
        pos: scores of the positives.
        neg: scores of the negatives.
        w: weights; constants for the gradient.

    Returns:
        (weighted mean, plain mean).

    Raises:
        ValueError: shapes that differ, or no pair at all.

    Source:
        ``modeling.py`` of the official code.

    Example:
        >>> loss, plain = weighted_pairwise_loss(jnp.zeros(2), jnp.zeros(2), jnp.array([1.0, 3.0]))
        >>> round(float(loss / plain), 4)
        2.0
    """
    losses = pairwise_ce(pos, neg)
    w = at_least_float32(w)
    _same_shape("w", w, "pos", losses)
    if losses.size == 0:
        raise ValueError(f"pos: expected at least one pair, got shape {losses.shape}")
    return jnp.mean(jax.lax.stop_gradient(w) * losses), jnp.mean(losses)


def coupled_weights(
    neg_R: Float[Array, "pairs"],
    neg_S: Float[Array, "pairs"],
    tau: float | Array,
    normalise: Literal["none", "mean"] = "none",
    center: bool = False,
    *,
    pos_R: Float[Array, "pairs"] | None = None,
    pos_S: Float[Array, "pairs"] | None = None,
    clip: float | None = None,
) -> tuple[Float[Array, "pairs"], Float[Array, "pairs"]]:
    """What each model's negatives weigh in the other's loss.

    w_R = 1 + exp(f_S(d-) / tau),  w_S = 1 + exp(f_R(d-) / tau)

    A negative that S would have selected is truly non-relevant, so R may trust it; a relevant document that
    was never selected has a low f_S and little weight.

    Args:
        neg_R: the relevance model's scores of the negatives, without dropout.
        neg_S: the selection model's.
        tau: temperature, above 0; it must be on the scale of the scores' spread.
        normalise: "mean" divides the weights by their mean, so that tau does not change the step (*ours*).
        center: subtract the mean score of the negatives first: a pairwise loss leaves the level of the
            scores free (*ours*).
        pos_R: scores of the positives. Where both are given, weights are also divided by the positive's
            propensity, sigmoid(f(d+) / tau), as in unbiased learning to rank (*ours*).
        pos_S: likewise.
        clip: largest exponent, see `ips_weight`.

    Returns:
        (weights for R's loss, weights for S's loss), through which no gradient flows.

    Raises:
        ValueError: shapes that differ, an unknown normalise, a tau that is not positive, one of pos_R and
            pos_S without the other.

    Source:
        ``train.py`` of the official code; positives: Ai et al. 2018, arXiv:1804.05938.

    Example:
        >>> w_R, w_S = coupled_weights(jnp.array([0.0]), jnp.array([-9.0]), 1.0)
        >>> w_S.tolist(), round(float(w_R[0]), 4)
        ([2.0], 1.0001)
    """
    one_of("normalise", normalise, NORMALISATIONS)
    if (pos_R is None) != (pos_S is None):
        raise ValueError("pos_R, pos_S: expected both or neither, got one")
    neg_R, neg_S = jnp.asarray(neg_R), jnp.asarray(neg_S)
    _same_shape("neg_S", neg_S, "neg_R", neg_R)

    def weights(neg: Array, pos: Array | None) -> Array:
        neg = at_least_float32(neg)
        level = jnp.mean(neg) if center else jnp.zeros((), neg.dtype)
        w = ips_weight(neg - level, tau, clip=clip)
        if pos is not None:
            pos = at_least_float32(pos)
            _same_shape("pos", pos, "neg", neg)
            w = w * ips_weight(level - pos, tau, clip=clip)
        return jax.lax.stop_gradient(w / jnp.mean(w) if normalise == "mean" else w)

    return weights(neg_S, pos_S), weights(neg_R, pos_R)


class CETState(NamedTuple):
    """What a step passes on: enough to resume exactly.

    Attributes:
        step: number of updates made so far.
        params: of ``"R"``, the relevance model, and ``"S"``, the selection model.
        opt_state: of both optimizers, by the same names.
        key: random key of the whole run; never changes.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: dict[str, Any]
    key: PRNGKeyArray


def init_cet(
    key: jax.Array,
    params_R: Any,
    params_S: Any,
    tx_R: optax.GradientTransformation,
    tx_S: optax.GradientTransformation,
) -> CETState:
    """The state before the first step.

    Args:
        key: random key of the whole run: dropout of step n has ``fold_in(key, n)`` where a step gets no key.
        params_R: parameters of the relevance model.
        params_S: parameters of the selection model.
        tx_R: optimizer of the relevance model.
        tx_S: optimizer of the selection model.

    Returns:
        The state at step 0.

    Source:
        ``train.py`` of the official code.

    Example:
        >>> state = init_cet(jax.random.key(0), jnp.ones(2), jnp.ones(3), optax.sgd(0.1), optax.sgd(0.1))
        >>> int(state.step), sorted(state.params)
        (0, ['R', 'S'])
    """
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), {"R": params_R, "S": params_S})
    opt_state = {"R": tx_R.init(params["R"]), "S": tx_S.init(params["S"])}
    return CETState(jnp.zeros((), jnp.int32), params, opt_state, key)


def make_cet_step(
    apply_R: Score,
    apply_S: Score,
    tx_R: optax.GradientTransformation,
    tx_S: optax.GradientTransformation,
    tau: float | Array,
    *,
    inputs: Literal["separate", "shared"] = "separate",
    normalise: Literal["none", "mean"] = "none",
    center: bool = False,
    positive_ips: bool = False,
    weighting: Literal["coupled", "constant", "none"] = "coupled",
    dropout: bool = False,
    clip: float | None = None,
) -> Callable[..., tuple[CETState, dict[str, Array]]]:
    """A pure step of both models, for ``jit``, ``jaxneg.train.shard_step`` and ``fit``.

    R <- R + tx_R(grad 1/B sum_i w_i^R l_i(f_R)),  S <- S + tx_S(grad 1/B sum_i w_i^S l_i(f_S))

    Both weights come from the parameters before the step and without dropout. The official optimizer is
    ``optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(linear_warmup_decay(3e-6, 10_000, total),
    weight_decay=0.01, mask=...))`` for each model, without decay of biases and layer normalisation. Without
    dropout a step is one forward and one backward pass of each model; with it, the weights take another
    forward pass of the negatives.

    Args:
        apply_R: ``(params, inputs) -> scores [rows]`` of the relevance model; with ``dropout``,
            ``(params, inputs, key)``, where None turns it off.
        apply_S: likewise of the selection model.
        tx_R: optimizer of the relevance model.
        tx_S: optimizer of the selection model.
        tau: temperature of the weights, above 0. The official script has 10, its default 2; *our* generator
            wants 1. To be tuned on held-out queries.
        inputs: "separate": the batch is ``{"R": ..., "S": ...}``, and each model reads its own; "shared":
            both read the whole batch. Each model's part is a pytree with a leading axis of 2B rows, positive
            and negative in turn, or ``{"pos": ..., "neg": ...}`` with B rows each.
        normalise: see `coupled_weights`.
        center: see `coupled_weights`.
        positive_ips: divide by the positives' propensities too, see `coupled_weights`.
        weighting: "none": both losses are plain, the naive ranker; "constant": each weight is replaced by the
            mean over the batch, which shows what a larger step alone does.
        dropout: whether the models take a key.
        clip: largest exponent of a weight, see `ips_weight`.

    Returns:
        ``step(state, batch, rng=None, pair_weight=None) -> (state, metrics)``. ``pair_weight`` [B] multiplies
        both models' weights (`oracle_weight`, `denoise_weight`, `perc_pos_weight`, or 0 for padding). Metrics
        are scalars: ``loss_R``, ``loss_S``, ``loss_R_plain``, ``loss_S_plain``, mean weights ``weight_R`` and
        ``weight_S``, mean scores of the negatives ``neg_R`` and ``neg_S``, ``grad_norm_R`` and
        ``grad_norm_S`` before any clipping, and ``loss``, the sum of both.

    Raises:
        ValueError: an unknown choice, a tau that is not positive; at trace time a batch without R and S, no
            pair, an odd number of interleaved rows, positives and negatives of different shapes, or scores of
            another shape than one a row.

    Source:
        ``train.py`` of the official code (Jacobi order: no model sees the other's update of the same step).

    Example:
        >>> linear, tx = (lambda w, x: x @ w), optax.sgd(0.1)
        >>> step = make_cet_step(linear, linear, tx, tx, 1.0, inputs="shared")
        >>> state = init_cet(jax.random.key(0), jnp.zeros(2), jnp.zeros(2), tx, tx)
        >>> state, metrics = step(state, {"pos": jnp.ones((4, 2)), "neg": -jnp.ones((4, 2))})
        >>> state.params["R"].tolist(), round(float(metrics["loss_R"] / metrics["loss_R_plain"]), 4)
        ([0.20000000298023224, 0.20000000298023224], 2.0)
    """
    one_of("inputs", inputs, INPUTS)
    one_of("normalise", normalise, NORMALISATIONS)
    one_of("weighting", weighting, WEIGHTINGS)
    _check_tau(tau)
    apply = {"R": apply_R, "S": apply_S}
    tx = {"R": tx_R, "S": tx_S}

    def step(
        state: CETState, batch: Any, rng: PRNGKeyArray | None = None, pair_weight: Array | None = None
    ) -> tuple[CETState, dict[str, Array]]:
        keys: dict[str, Any] = {"R": None, "S": None}
        if dropout:
            rng = jax.random.fold_in(state.key, state.step) if rng is None else rng
            keys = dict(zip(keys, jax.random.split(rng), strict=True))
        if inputs == "separate" and not (isinstance(batch, dict) and {"R", "S"} <= set(batch)):
            raise ValueError(
                'batch: expected {"R": ..., "S": ...} for separate inputs, got '
                f"{sorted(batch) if isinstance(batch, dict) else type(batch).__name__}"
            )
        rows = {m: _interleaved(m, batch[m] if inputs == "separate" else batch) for m in apply}

        def scores(model: str, params: Any, key: Any, only_negatives: bool = False) -> Array:
            """``[B, 2]``, positive first, or ``[B, 1]``."""
            x = rows[model]
            if only_negatives:
                x = jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:])[:, 1], x)
            count = jax.tree.leaves(x)[0].shape[0]
            found = apply[model](params, x, key) if dropout else apply[model](params, x)
            if found.shape != (count,):
                raise ValueError(
                    f"apply_{model}: expected scores of shape ({count},), one a row, got {found.shape}"
                )
            return at_least_float32(found).reshape(-1, 1 if only_negatives else 2)

        trained, pull_back = {}, {}
        for m in apply:
            trained[m], pull_back[m] = jax.vjp(lambda p, m=m: scores(m, p, keys[m]), state.params[m])
        pairs = trained["R"].shape[0]
        if trained["S"].shape[0] != pairs:
            raise ValueError(
                f"batch: expected as many pairs for R and S, got {pairs} and {trained['S'].shape[0]}"
            )
        frozen = trained
        if dropout and weighting != "none":
            frozen = {m: scores(m, state.params[m], None, not positive_ips) for m in apply}
        neg = {m: frozen[m][:, -1] for m in apply}
        w = {m: jnp.ones_like(neg[m]) for m in apply}
        if weighting != "none":
            pos = {f"pos_{m}": frozen[m][:, 0] if positive_ips else None for m in apply}
            found = coupled_weights(neg["R"], neg["S"], tau, normalise, center, clip=clip, **pos)
            w = dict(zip(apply, found, strict=True))
        if weighting == "constant":
            w = {m: jnp.mean(w[m]) * jnp.ones_like(w[m]) for m in apply}
        if pair_weight is not None:
            pair_weight = at_least_float32(pair_weight)
            _same_shape("pair_weight", pair_weight, "the scores of the negatives", neg["R"])
            w = {m: w[m] * pair_weight for m in apply}

        params, opt_state, metrics = {}, {}, {}
        for m in apply:
            (loss, plain), cotangent = jax.value_and_grad(
                lambda s, m=m: weighted_pairwise_loss(s[:, 0], s[:, 1], w[m]), has_aux=True
            )(trained[m])
            (grads,) = pull_back[m](cotangent)
            updates, opt_state[m] = tx[m].update(grads, state.opt_state[m], state.params[m])
            params[m] = optax.apply_updates(state.params[m], updates)
            metrics |= {
                f"loss_{m}": loss,
                f"loss_{m}_plain": plain,
                f"weight_{m}": jnp.mean(w[m]),
                f"neg_{m}": jnp.mean(neg[m]),
                f"grad_norm_{m}": optax.tree.norm(grads),
            }
        metrics["loss"] = metrics["loss_R"] + metrics["loss_S"]
        return CETState(state.step + 1, params, opt_state, state.key), metrics

    return step


def linear_warmup_decay(peak: float, warmup: int, total: int) -> optax.Schedule:
    """Learning rate that rises linearly from 0 and falls linearly to 0.

    lr(t) = peak t / warmup for t < warmup, then peak (total - t) / (total - warmup), 0 from total on

    The very first update has the learning rate 0 where there is a warm-up.

    Args:
        peak: the highest learning rate.
        warmup: steps of the rise; 0 for none.
        total: steps in all.

    Returns:
        A schedule for optax.

    Raises:
        ValueError: a warmup below 0, or a total below warmup or 1.

    Source:
        ``get_linear_schedule_with_warmup`` of transformers, which the official ``train.py`` uses.

    Example:
        >>> [round(float(linear_warmup_decay(1.0, 2, 4)(t)), 2) for t in range(5)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if warmup < 0:
        raise ValueError(f"warmup: expected at least 0, got {warmup}")
    if total < max(warmup, 1):
        raise ValueError(f"total: expected at least warmup = {warmup} and 1, got {total}")

    def schedule(count: Any) -> Float[Array, ""]:
        t = jnp.asarray(count, float)
        rise, fall = t / max(warmup, 1), (total - t) / max(total - warmup, 1)
        return peak * jnp.where(t < warmup, rise, jnp.maximum(fall, 0.0))

    return schedule


def _bounded_exp(exponent: Array, clip: float | None) -> Array:
    if clip is None:
        clip = 640.0 if exponent.dtype == jnp.float64 else 80.0
    if np.isnan(clip):
        raise ValueError("clip: expected a number, got nan")
    return jnp.exp(jnp.minimum(exponent, clip))


def _check_tau(tau: float | Array) -> None:
    if not isinstance(tau, Tracer) and not np.all(np.asarray(tau) > 0):
        raise ValueError(f"tau: expected a positive number, got {tau}")


def _same_shape(name: str, array: Array, other_name: str, other: Array) -> None:
    if array.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name}, {other.shape}, got {array.shape}")


def _interleaved(model: str, part: Any) -> Any:
    """Rows positive, negative, positive, ...: on a mesh a pair's rows stay where they are."""
    if isinstance(part, dict) and set(part) == {"pos", "neg"}:
        shapes = [jax.tree.map(jnp.shape, part[side]) for side in ("pos", "neg")]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"batch of {model}: expected negatives of the positives' shapes, {shapes[0]}, got {shapes[1]}"
            )
        part = jax.tree.map(
            lambda p, n: jnp.stack([p, n], axis=1).reshape(-1, *p.shape[1:]), part["pos"], part["neg"]
        )
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(part)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            f"batch of {model}: expected arrays with the same number of rows, got "
            f"{[jnp.shape(leaf) for leaf in jax.tree.leaves(part)]}"
        )
    ((rows,),) = counts
    if rows == 0 or rows % 2:
        raise ValueError(
            f"batch of {model}: expected an even number of rows, positive and negative in turn, got {rows}"
        )
    return part
