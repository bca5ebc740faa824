"""Quality-guided contrastive rationale distillation: the step of a student with a judge beside it.

Implements Wang et al., "QCRD: Quality-guided Contrastive Rationale Distillation for Large Language Models",
arXiv:2405.13014, Section 3. A student answers under "predict:" and explains under "explain:". Positives are
the teacher's rationales that agree with its majority (`self_consistency`), negatives are those that an
earlier student samples at a high temperature (`SnapshotBuffer`, `sample_rationales`), and a judge that is
trained beside the student says how good each of them is. There is no released code. *Our reading*: an
iteration is a period of ``refresh`` steps, between which negatives and snapshots are made anew; the judge
learns in the first ``judge_steps`` of each, from its own loss alone.

Models are functions. ``encode(params, tokens [B, S], mask [B, S]) -> states``; ``decode(params, states, mask
[B, S], tokens [B, T] or [B, n, T]) -> logits``, with the tokens shifted to the right; ``judge(params,
question [B, S], mask, rationales [B, n, T], mask) -> scores [B, n]`` in [0, 1].
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxneg.language.decoding import generate
from jaxneg.language.rationale_distillation import (
    SELECTING,
    Scheme,
    contrastive_rationale_loss,
    discriminator_loss,
    sequence_ce,
    token_mean_ce,
)

Encode = Callable[[Any, Array, Array], Any]
Decode = Callable[[Any, Any, Array, Array], Array]
Judge = Callable[[Any, Array, Array, Array, Array], Array]


@dataclass(frozen=True)
class QCRDConfig:
    """The choices of the paper; hashable, so it may be a static argument."""

    alphas: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Weights of the labels' loss, the contrastive loss and the judge's."""
    beta: float = 0.2
    """Weight of the negatives."""
    delta: float = 3.0
    """Margin in nats per token, from which on a negative is bad enough."""
    scheme: Scheme = "minmax"
    """How a set of rationales becomes one number."""
    decay: float = 0.9
    """Of the judge's weight, for each iteration."""
    refresh: int = 250
    """Steps of an iteration."""
    judge_steps: int | None = 50
    """Steps at the beginning of each iteration in which the judge learns; None: all."""
    denominator: Literal["neg", "all"] = "neg"
    """Of the judge's loss, see `discriminator_loss`."""
    decay_judge_rate: bool = False
    """Whether the decay scales the judge's updates too; with Adam it has no effect on gradients."""
    start: int = 0
    """The token that a decoder begins with."""

    def __post_init__(self) -> None:
        if len(self.alphas) != 3 or not all(0 <= alpha < float("inf") for alpha in self.alphas):
            raise ValueError(f"alphas: expected three finite weights of at least 0, got {self.alphas}")
        for name in ("beta", "delta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: expected a finite number of at least 0, got {getattr(self, name)}")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay: expected a number above 0, 1 at most, got {self.decay}")
        if self.refresh < 1:
            raise ValueError(f"refresh: expected at least 1 step, got {self.refresh}")
        if self.judge_steps is not None and self.judge_steps < 0:
            raise ValueError(f"judge_steps: expected at least 0, or None, got {self.judge_steps}")
        for name, allowed in (("scheme", get_args(Scheme)), ("denominator", ("neg", "all"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")


class QCRDState(NamedTuple):
    """What a step passes on: enough to resume exactly.

    Attributes:
        step: number of updates of the student made so far.
        params: ``"student"`` and ``"judge"``; the judge's are {} where there is none.
        opt_state: of both optimizers, by the same names.
        key: random key of the whole run; never changes.
    """

    step: Int[Array, ""]
    params: dict[str, Any]
    opt_state: dict[str, Any]
    key: PRNGKeyArray


def init_qcrd(
    key: jax.Array,
    student: Any,
    tx: optax.GradientTransformation,
    judge: Any = None,
    judge_tx: optax.GradientTransformation | None = None,
) -> QCRDState:
    """The state before the first step.

    Args:
        key: random key of the whole run.
        student: parameters of the student.
        tx: its optimizer.
        judge: parameters of the judge; None: there is none.
        judge_tx: its optimizer.

    Returns:
        The state at step 0.

    Raises:
        ValueError: a judge without an optimizer.

    Example:
        >>> int(init_qcrd(jax.random.key(0), {"w": jnp.ones(2)}, optax.sgd(0.1)).step)
        0
    """
    if judge is not None and judge_tx is None:
        raise ValueError("judge_tx: a judge needs an optimizer, got None")
    params = {"student": student, "judge": {} if judge is None else judge}
    judge_state = {} if judge is None or judge_tx is None else judge_tx.init(judge)
    return QCRDState(
        jnp.zeros((), jnp.int32), params, {"student": tx.init(student), "judge": judge_state}, key
    )


def make_qcrd_step(
    encode: Encode,
    decode: Decode,
    tx: optax.GradientTransformation,
    cfg: QCRDConfig | None = None,
    *,
    judge: Judge | None = None,
    judge_tx: optax.GradientTransformation | None = None,
) -> Callable[[QCRDState, Mapping[str, Array]], tuple[QCRDState, dict[str, Array]]]:
    """A pure step of student and judge, for ``jit``, ``jaxneg.train.shard_step`` and ``fit``.

    ``student <- student + tx(grad (alpha_1 L_pred + alpha_2 mean_i L_cl,i))``, then, in the judge's steps,
    ``judge <- judge + judge_tx(alpha_3 decay^n grad L_D)``

    A question is encoded once for all its rationales. Where the scheme selects one rationale of each set, the
    sets are compared without a gradient, and only what was selected is differentiated and judged: the result
    is the same, and all other rationales cost a third.

    Args:
        encode: the student's encoder.
        decode: the student's decoder.
        tx: the student's optimizer.
        cfg: the choices; None: the paper's.
        judge: scores rationales; None: there is no judge, and every rationale has its full weight.
        judge_tx: its optimizer.

    Returns:
        ``step(state, batch) -> (state, metrics)``. The batch holds ``predict`` and ``explain`` ``[B, S]``,
        the question under either task's prefix; ``label`` ``[B, T]``; ``pos`` ``[B, m, T]`` and ``neg`` ``[B,
        k, T]``, k may be 0; with a judge ``question`` ``[B, S]``, without a prefix; each with a mask of its
        shape, as ``label_mask``, 1 where there is a token; and ``pos_valid`` ``[B, m]``, ``neg_valid`` ``[B,
        k]``. Targets end with their end token. Metrics: ``loss`` (the student's), ``pred_loss``, ``cl_loss``,
        ``pos_ce`` and ``neg_ce`` (nats per token, means over the rationales that took part), ``grad_norm``,
        ``update_norm``, with a judge ``judge_loss`` (of every batch in which it learns, else NaN-free 0) and
        ``pos_score``, ``neg_score``. The random key of step n is ``fold_in(state.key, n)``.

    Raises:
        ValueError: a judge without an optimizer, or the other way round, the scheme "wmean" without a judge;
            from the step, a batch that lacks a part, or parts whose shapes do not match.

    Source:
        arXiv:2405.13014, Section 3, equations 2 to 8.

    Example:
        >>> encode = lambda params, tokens, mask: jax.nn.one_hot(tokens, 4).mean(1)
        >>> decode = lambda params, x, mask, tokens: jnp.zeros((*tokens.shape, 4)) + params["b"]
        >>> tokens, mask = jnp.ones((2, 3), int), jnp.ones((2, 3), int)
        >>> batch = {f"{name}{end}": array for name in ("predict", "explain", "label")
        ...          for end, array in (("", tokens), ("_mask", mask))}
        >>> batch |= {f"{name}{end}": array[:, None] for name in ("pos", "neg")
        ...           for end, array in (("", tokens), ("_mask", mask), ("_valid", mask[:, 0]))}
        >>> step = make_qcrd_step(encode, decode, tx := optax.sgd(0.1))
        >>> state, metrics = jax.jit(step)(init_qcrd(jax.random.key(0), {"b": jnp.zeros(4)}, tx), batch)
        >>> int(state.step), float(metrics["pos_ce"] / jnp.log(4))
        (1, 1.0)
    """
    cfg = cfg or QCRDConfig()
    if (judge is None) != (judge_tx is None):
        raise ValueError("judge, judge_tx: expected both or neither, got one of them")
    if cfg.scheme == "wmean" and judge is None:
        raise ValueError("scheme: 'wmean' weighs by the judge's scores, got no judge")

    def shifted(tokens: Array) -> Array:
        """What the decoder reads: the start token, and the targets up to the last but one."""
        front = [(0, 0)] * (tokens.ndim - 1) + [(1, 0)]
        return jnp.pad(tokens[..., :-1], front, constant_values=cfg.start)

    def costs(params: Any, states: Any, batch: Mapping[str, Array], tokens: Array, mask: Array) -> Array:
        logits = decode(params, states, batch["explain_mask"], shifted(tokens))
        return sequence_ce(logits, tokens, mask)

    def scores(params: Any, batch: Mapping[str, Array], tokens: Array, mask: Array, m: int) -> list[Array]:
        """Of the first m rationales, and of the others."""
        assert judge is not None
        found = judge(params, batch["question"], batch["question_mask"], tokens, mask)
        return [found[:, :m], found[:, m:]]

    def contrast(
        student: Any, judge_params: Any, batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> tuple[Array, dict[str, Array]]:
        states = encode(student, batch["explain"], batch["explain_mask"])
        tokens, mask, valid = _rationales(batch)
        m = batch["pos"].shape[1]
        scheme: Scheme = cfg.scheme
        if scheme in SELECTING:
            compared = jnp.zeros_like(valid, jnp.float32)
            if scheme != "sampling" and tokens.shape[1] > 2:
                fixed = jax.lax.stop_gradient((student, states))
                compared = jax.lax.stop_gradient(costs(*fixed, batch, tokens, mask))
            _, found = contrastive_rationale_loss(
                compared[:, :m],
                compared[:, m:],
                valid[:, :m],
                valid[:, m:],
                delta=cfg.delta,
                scheme=scheme,
                key=key,
            )
            places = [found["pos_index"], m + found["neg_index"]][: 1 + (tokens.shape[1] > m)]
            tokens, mask, valid = (_picked(array, places) for array in (tokens, mask, valid))
            m, scheme = 1, "minmax"
        ce = costs(student, states, batch, tokens, mask)
        judged = () if judge is None else scores(judge_params, batch, tokens, mask, m)
        loss, _ = contrastive_rationale_loss(
            ce[:, :m],
            ce[:, m:],
            valid[:, :m],
            valid[:, m:],
            *judged,
            beta=cfg.beta,
            delta=cfg.delta,
            scheme=scheme,
        )
        aux = {"pos_ce": _mean(ce[:, :m], valid[:, :m]), "neg_ce": _mean(ce[:, m:], valid[:, m:])}
        if judged:
            aux["pos_score"] = _mean(judged[0], valid[:, :m])
            aux["neg_score"] = _mean(judged[1], valid[:, m:])
        return loss.mean(), aux

    def student_loss(
        student: Any, judge_params: Any, batch: Mapping[str, Array], key: PRNGKeyArray
    ) -> tuple[Array, dict[str, Array]]:
        states = encode(student, batch["predict"], batch["predict_mask"])
        logits = decode(student, states, batch["predict_mask"], shifted(batch["label"]))
        pred = token_mean_ce(logits, batch["label"], batch["label_mask"])
        contrastive, aux = contrast(student, judge_params, batch, key)
        total = cfg.alphas[0] * pred + cfg.alphas[1] * contrastive
        return total, {"pred_loss": pred, "cl_loss": contrastive, **aux}

    def judge_update(
        params: Any, opt_state: Any, batch: Mapping[str, Array], iteration: Array
    ) -> tuple[Any, Any, Array]:
        assert judge_tx is not None
        tokens, mask, valid = _rationales(batch)
        m = batch["pos"].shape[1]

        def loss(params: Any) -> Array:
            pos, neg = scores(params, batch, tokens, mask, m)
            return discriminator_loss(pos, neg, valid[:, :m], valid[:, m:], cfg.denominator)

        value, grads = jax.value_and_grad(loss)(params)
        scale = cfg.decay ** iteration.astype(jnp.float32)
        grads = jax.tree.map(lambda g: (cfg.alphas[2] * scale * g).astype(g.dtype), grads)
        updates, opt_state = judge_tx.update(grads, opt_state, params)
        if cfg.decay_judge_rate:
            updates = jax.tree.map(lambda u: (scale * u).astype(u.dtype), updates)
        return optax.apply_updates(params, updates), opt_state, value

    def step(state: QCRDState, batch: Mapping[str, Array]) -> tuple[QCRDState, dict[str, Array]]:
        _check(batch, judge is not None)
        key = jax.random.fold_in(state.key, state.step)
        student, judged = state.params["student"], state.params["judge"]
        (loss, aux), grads = jax.value_and_grad(student_loss, has_aux=True)(student, judged, batch, key)
        updates, student_state = tx.update(grads, state.opt_state["student"], student)
        metrics = {
            "loss": loss,
            **aux,
            "grad_norm": optax.tree.norm(grads),
            "update_norm": optax.tree.norm(updates),
        }
        judge_state = state.opt_state["judge"]
        if judge is not None:
            iteration, place = state.step // cfg.refresh, state.step % cfg.refresh
            learn = True if cfg.judge_steps is None else place < cfg.judge_steps
            judged, judge_state, metrics["judge_loss"] = jax.lax.cond(
                learn,
                lambda params, opt_state: judge_update(params, opt_state, batch, iteration),
                lambda params, opt_state: (params, opt_state, jnp.zeros(())),
                judged,
                judge_state,
            )
        params = {"student": optax.apply_updates(student, updates), "judge": judged}
        opt_state = {"student": student_state, "judge": judge_state}
        return QCRDState(state.step + 1, params, opt_state, state.key), metrics

    return step


def sample_rationales(
    key: jax.Array,
    apply: Callable[..., tuple[Array, Any]],
    params: Any,
    enc: tuple[Any, Bool[Array, "batch source"]],
    temperature: float = 1.5,
    max_len: int = 64,
    *,
    cache: Any,
    eos: int = 1,
    pad: int = 0,
    start: int = 0,
) -> tuple[Int[Array, "batch tokens"], Bool[Array, "batch tokens"]]:
    """Rationales that a student writes, in one loop on the device with a cache.

    ``r_t ~ softmax(decode(params, states, r_<t) / temperature)`` until all rows have ended

    Args:
        key: randomness.
        apply: ``(params, states, mask, tokens [B, 1], cache) -> (logits [B, 1, V], cache)``, the decoder with
            its cache.
        params: of the student, or of what it was some iterations ago.
        enc: the encoded questions under "explain:" and their mask, ``(states, mask)``. For several samples of
            a question repeat its rows.
        temperature: 0 for the most likely rationale.
        max_len: how many tokens at most, the end included.
        cache: an empty cache with room for ``max_len`` tokens.
        eos: the end token.
        pad: what follows it.
        start: the token that the decoder begins with.

    Returns:
        Tokens with their end, and the mask of the tokens that count, the end among them: targets for
        `sequence_ce`.

    Raises:
        ValueError: as `generate`.

    Source:
        arXiv:2405.13014, Section 3: one sample for each question at temperature 1.5.

    Example:
        >>> def apply(params, states, mask, tokens, cache):
        ...     return params[tokens], cache
        >>> params = 50 * jax.nn.one_hot(jnp.array([2, 0, 3, 1]), 4)  # 0, 2, 3 and the end 1
        >>> enc = jnp.zeros((1, 2)), jnp.ones((1, 2), bool)
        >>> tokens, mask = sample_rationales(jax.random.key(0), apply, params, enc, max_len=5, cache=())
        >>> tokens.tolist(), mask.tolist()
        ([[2, 3, 1, 0, 0]], [[True, True, True, False, False]])
    """
    states, mask = enc

    def step(tokens: Array, _positions: Array, _mask: Array, cache: Any) -> tuple[Array, Any]:
        return apply(params, states, mask, tokens, cache)

    prompt = jnp.full_like(mask[:, :1], start, jnp.int32)
    tokens, lengths = generate(
        key, step, prompt, None, cache, max_new_tokens=max_len, eos=eos, pad=pad, temperature=temperature
    )
    return tokens, jnp.arange(max_len) <= lengths[:, None]


def corrupt_rationales(
    key: jax.Array,
    tokens: Int[Array, "rationales tokens"],
    words: Bool[Array, "rationales tokens"],
    mask_token: int,
    rate: float = 0.3,
) -> Int[Array, "rationales tokens"]:
    """Bad rationales made of good ones, to train a judge before there is a student to write them.

    Each word is masked with probability ``rate / 2``, and replaced by a word of another rationale of the
    batch with probability ``rate / 2``. The paper does both; *our reading* is the rate.

    Args:
        key: randomness.
        tokens: the rationales.
        words: 1 where a token may be changed: not its end, and no padding.
        mask_token: what stands for a masked word.
        rate: share of the words that are changed.

    Returns:
        The rationales, changed.

    Raises:
        ValueError: fewer than two rationales, shapes that do not match, a rate outside 0 to 1.

    Source:
        arXiv:2405.13014, Section 3, the pretraining of the discriminator.

    Example:
        >>> tokens = jnp.arange(1, 7).reshape(2, 3)
        >>> corrupt_rationales(jax.random.key(0), tokens, tokens > 0, 9, rate=0.0).tolist()
        [[1, 2, 3], [4, 5, 6]]
    """
    if tokens.ndim != 2 or tokens.shape[0] < 2:
        raise ValueError(f"tokens: expected the shape [rationales, tokens], two at least, got {tokens.shape}")
    if words.shape != tokens.shape:
        raise ValueError(f"words: expected the shape of tokens, {tokens.shape}, got {words.shape}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate: expected a number between 0 and 1, got {rate}")
    count, length = tokens.shape
    kind_key, row_key, place_key = jax.random.split(key, 3)
    kind = jax.random.uniform(kind_key, tokens.shape)
    row = (jnp.arange(count)[:, None] + jax.random.randint(row_key, tokens.shape, 1, count)) % count
    # The r-th of the other rationale's words, wherever they lie.
    order = jnp.argsort(~words, axis=-1, stable=True)
    n_words = words.sum(-1)
    rank = jnp.floor(jax.random.uniform(place_key, tokens.shape) * n_words[row]).astype(int)
    other = tokens[row, order[row, jnp.clip(rank, 0, length - 1)]]
    other = jnp.where(n_words[row] > 0, other, mask_token)
    changed = jnp.where(kind < rate / 2, mask_token, jnp.where(kind < rate, other, tokens))
    return jnp.where(words, changed, tokens)


def _rationales(batch: Mapping[str, Array]) -> tuple[Array, Array, Array]:
    """Positives and negatives beside one another: tokens, mask, valid."""
    tokens, mask, valid = (
        jnp.concatenate([batch[f"pos{end}"], batch[f"neg{end}"]], 1) for end in ("", "_mask", "_valid")
    )
    return tokens, mask, valid != 0


def _picked(array: Array, places: list[Array]) -> Array:
    """Of each row the entries at these places, ``[B, len(places), ...]``; masked sums, for sharded rows."""

    def pick(place: Array) -> Array:
        chosen = jnp.arange(array.shape[1]) == place[:, None]
        chosen = chosen.reshape(*chosen.shape, *[1] * (array.ndim - 2))
        return jnp.where(chosen, array, 0).sum(1).astype(array.dtype)

    return jnp.stack([pick(place) for place in places], 1)


def _mean(values: Float[Array, "batch rationales"], valid: Bool[Array, "batch rationales"]) -> Array:
    return jnp.where(valid, values, 0).sum() / jnp.maximum(valid.sum(), 1)


def _check(batch: Mapping[str, Array], judged: bool) -> None:
    masked = ("predict", "explain", "label", "pos", "neg", *(("question",) if judged else ()))
    for name in (*masked, *(f"{name}_mask" for name in masked), "pos_valid", "neg_valid"):
        if name not in batch:
            raise ValueError(f"batch: expected {name!r}, got {', '.join(sorted(batch))}")
    rows = batch["label"].shape[:1]
    for name in masked:
        shape, rank = batch[name].shape, 3 if name in ("pos", "neg") else 2
        if len(shape) != rank or shape[:1] != rows or batch[f"{name}_mask"].shape != shape:
            raise ValueError(
                f"batch: {name}: expected {rank} axes, {rows[0]} rows and a mask of its shape,"
                f" got {shape} and {batch[f'{name}_mask'].shape}"
            )
    for name in ("pos", "neg"):
        if batch[f"{name}_valid"].shape != batch[name].shape[:2]:
            raise ValueError(
                f"batch: {name}_valid: expected the shape {batch[name].shape[:2]},"
                f" got {batch[f'{name}_valid'].shape}"
            )
    if batch["pos"].shape[1] == 0 or batch["pos"].shape[2] != batch["neg"].shape[2]:
        raise ValueError(
            "batch: expected at least one positive, and negatives of its length,"
            f" got {batch['pos'].shape} and {batch['neg'].shape}"
        )
