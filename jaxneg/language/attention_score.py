"""The negative attention score: how much more a head looks at the "No" of an instruction than at its "Yes".

Implements the score of Yu et al., "Correcting Negative Bias in Large Language Models through Negative
Attention Score Alignment", arXiv:2408.00137, the ranking of heads by it, and a loss that brings it to zero.
The paper's sum has a garbled range in the sources at hand: rows run here from the first token after the
instruction to the prompt's end. The form of the loss is this project's own.

A head's attention to two columns needs two scores and the log-normaliser of each row, and never the whole
map: `attention_score_pairs` computes these in blocks, in memory that grows with the prompt and not with its
square.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

_SEGMENTS = 8


class ScorePairs(NamedTuple):
    """What the score needs of an attention map: two columns before the softmax, and the rows' normalisers.

    The attention of row i is ``exp(yes[i] - normaliser[i])`` to "Yes", ``exp(no[i] - normaliser[i])`` to
    "No". Their ratio never divides, so that it survives attention that underflows.

    Attributes:
        yes: scores of the column of "Yes", scaled as in the softmax.
        no: those of the column of "No".
        normaliser: log-sum-exp of each row's scores.
    """

    yes: Float[Array, "*heads tokens"]
    no: Float[Array, "*heads tokens"]
    normaliser: Float[Array, "*heads tokens"]


def attention_score_pairs(
    query: Float[Array, "*layers heads tokens size"],
    key: Float[Array, "*layers kv_heads tokens size"],
    t_yes: int | Int[Array, ""],
    t_no: int | Int[Array, ""],
    *,
    mask: Bool[Array, " tokens"] | None = None,
    scale: float | None = None,
    block: int = 64,
    heads_at_once: int | None = None,
) -> ScorePairs:
    """Two columns of causal attention and its normalisers, from queries and keys of one prompt.

    ``yes[i] = s q_i . k_yes;  no[i] = s q_i . k_no;  normaliser[i] = log sum_(j <= i) exp(s q_i . k_j)``

    Rows are taken in blocks, with the keys up to the block's end; what a block computed is forgotten, and
    computed again in the backward pass. For a batch of prompts use ``jax.vmap``.

    Args:
        query: queries of all query heads, after the rotation of positions.
        key: keys; each key head serves ``heads / kv_heads`` neighbouring query heads.
        t_yes: position of "Yes".
        t_no: position of "No".
        mask: which tokens may be attended to, False for padding; None for all.
        scale: s; None for ``size ** -0.5``.
        block: rows at once.
        heads_at_once: heads whose blocks lie in memory together; None for one on a CPU, whose cache then
            holds them, and for all elsewhere.

    Returns:
        Scores and normalisers of every head, ``[*layers, heads, tokens]``, in float32 or wider. Rows that may
        attend to nothing have the normaliser minus infinity.

    Raises:
        TypeError: queries or keys that are not floating.
        ValueError: shapes that do not fit, a block or a number of heads below 1.

    Source:
        arXiv:2408.00137, the attention that enters its score.

    Example:
        >>> pairs = attention_score_pairs(jnp.zeros((2, 4, 6, 8)), jnp.zeros((2, 2, 6, 8)), 1, 2)
        >>> pairs.yes.shape, jnp.exp(pairs.normaliser[0, 0]).round().tolist()
        ((2, 4, 6), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    """
    query, key = _wide("query", query), _wide("key", key)
    heads, tokens, size = query.shape[-3:] if query.ndim >= 3 else (0, 0, 0)
    expected = (*query.shape[:-3], key.shape[-3] if key.ndim >= 3 else 0, tokens, size)
    if not heads or key.shape != expected or heads % key.shape[-3]:
        raise ValueError(
            "key: expected [*layers, kv_heads, tokens, size] beside a query of shape"
            f" {query.shape}, with kv_heads a divisor of its heads, got {key.shape}"
        )
    for name, value in (("block", block), ("heads_at_once", heads_at_once)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if mask is not None and jnp.shape(mask) != (tokens,):
        raise ValueError(
            f"mask: expected one boolean for each token, shape {(tokens,)}, got {jnp.shape(mask)}"
        )
    factor = size**-0.5 if scale is None else scale
    query = factor * query.reshape(*key.shape[:-2], -1, tokens, size)
    pairs = [jnp.einsum("...rtd,...d->...rt", query, jnp.take(key, t, axis=-2)) for t in (t_yes, t_no)]
    normaliser = _row_normaliser(query, key, mask, block, heads_at_once)
    return ScorePairs(*(each.reshape(*key.shape[:-3], heads, tokens) for each in (*pairs, normaliser)))


def negative_attention_score(
    attention: Float[Array, "*heads tokens tokens"] | ScorePairs,
    t_yes: int | Int[Array, ""],
    t_no: int | Int[Array, ""],
    lo: int | Int[Array, ""],
    hi: int | Int[Array, ""],
    *,
    rows: Literal["all", "last"] = "all",
) -> Float[Array, "*heads"]:
    """The negative attention score of every head on one prompt; positive where "No" gets more attention.

    ``NAS = sum_(i = lo)^(hi - 1) (A[i, yes] + A[i, no]) log(A[i, no] / A[i, yes])``

    Args:
        attention: attention after the softmax, rows the queries, as ``[layers, heads, tokens, tokens]``; or
            what `attention_score_pairs` returned, which bfloat16 and attention near zero need.
        t_yes: position of "Yes" in the instruction.
        t_no: position of "No"; both are read for attention only, scores hold their columns already.
        lo: first token after the instruction.
        hi: the prompt's length.
        rows: all tokens from ``lo`` to ``hi``, or only the last one.

    Returns:
        A value for each head, in float32 or wider; infinite where an attention given after the softmax is 0.

    Raises:
        TypeError: attention that is not floating.
        ValueError: attention that is not square, positions that are not ``t_yes, t_no < lo < hi <= tokens``,
            or an unknown name for ``rows``.

    Source:
        arXiv:2408.00137, the definition of the score; the range of the sum as read here.

    Example:
        >>> attention = jnp.tile(jnp.array([0.2, 0.6, 0.2]), (1, 2, 3, 1))
        >>> round(float(negative_attention_score(attention, 0, 1, 2, 3)[0, 1]), 3)
        0.879
    """
    if rows not in ("all", "last"):
        raise ValueError(f"rows: expected one of all, last, got {rows!r}")
    if isinstance(attention, ScorePairs):
        pairs = ScorePairs(*(_wide("attention", each) for each in attention))
        tokens = pairs.yes.shape[-1]
    else:
        attention = _wide("attention", attention)
        tokens = attention.shape[-1]
        if attention.ndim < 2 or attention.shape[-2] != tokens:
            raise ValueError(f"attention: expected [..., tokens, tokens], got shape {attention.shape}")
    _check_positions(tokens, t_yes, t_no, lo, hi)
    row = jnp.arange(tokens)
    chosen = (row >= lo) & (row < hi) if rows == "all" else row == hi - 1
    # Rows outside are replaced before any logarithm: their gradient must be 0, not 0 times infinity.
    if isinstance(attention, ScorePairs):
        yes, no, normaliser = (jnp.where(chosen, each, 0) for each in pairs)
        total = jnp.exp(yes - normaliser) + jnp.exp(no - normaliser)
        ratio = no - yes
    else:
        yes, no = (jnp.where(chosen, jnp.take(attention, t, axis=-1), 1) for t in (t_yes, t_no))
        total, ratio = yes + no, jnp.log(no) - jnp.log(yes)
    return jnp.sum(jnp.where(chosen, total * ratio, 0), axis=-1)


def rank_heads(
    nas: Float[Array, "*prompts layers heads"], *, deviations: float | None = None
) -> list[tuple[int, int]]:
    """Heads from the most negative on, by their mean score over prompts.

    Args:
        nas: scores on a probing set, whose answers need not be known, or their mean.
        deviations: None for all heads; a number for those only whose mean exceeds the mean over all heads by
            more than so many standard deviations (over heads, divided by their number).

    Returns:
        ``(layer, head)`` of each, heads of equal score in their own order.

    Raises:
        ValueError: fewer than two axes, no prompts, or a score that is not finite.

    Source:
        arXiv:2408.00137: heads of the largest mean score are its "negative heads".

    Example:
        >>> rank_heads(jnp.array([[0.1, 0.5], [0.5, -1.0]]))
        [(0, 1), (1, 0), (0, 0), (1, 1)]
    """
    values = np.asarray(nas, np.float64)
    if values.ndim < 2 or 0 in values.shape:
        raise ValueError(f"nas: expected scores [..., layers, heads], got shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"nas: expected finite scores, got {(~np.isfinite(values)).sum()} that are not")
    mean = values.reshape(-1, *values.shape[-2:]).mean(0)
    order = np.argsort(-mean, axis=None, kind="stable")
    if deviations is not None:
        order = order[mean.ravel()[order] > mean.mean() + deviations * mean.std()]
    return [(int(flat) // mean.shape[1], int(flat) % mean.shape[1]) for flat in order]


def nas_alignment_loss(
    nas: Float[Array, "*prompts layers heads"],
    heads: Sequence[tuple[int, int]] | Bool[Array, "layers heads"],
    lo: ArrayLike,
    hi: ArrayLike,
) -> Float[Array, "*prompts"]:
    """What is minimised to make chosen heads look at "Yes" as much as at "No".

    ``L = sum_((l, h) in heads) relu(NAS[l, h])^2 / (hi - lo)^2``

    Args:
        nas: scores of every head on each prompt.
        heads: the heads to repair, ``(layer, head)`` each, or a boolean for every head.
        lo: first token after the instruction of each prompt, or of all.
        hi: length of each prompt, or of all.

    Returns:
        One value for each prompt.

    Raises:
        TypeError: scores that are not floating.
        ValueError: no heads, a head that does not exist, or booleans of another shape.

    Source:
        The idea is that of arXiv:2408.00137; this form is the project's own.

    Example:
        >>> float(nas_alignment_loss(jnp.array([[3.0, -2.0]]), [(0, 0), (0, 1)], 4, 7))
        1.0
    """
    nas = _wide("nas", nas)
    if nas.ndim < 2:
        raise ValueError(f"nas: expected scores [..., layers, heads], got shape {nas.shape}")
    if isinstance(heads, jax.Array | np.ndarray):
        chosen = jnp.asarray(heads)
        if chosen.shape != nas.shape[-2:] or chosen.dtype != bool:
            raise ValueError(
                f"heads: expected booleans of shape {nas.shape[-2:]}, got {chosen.dtype} {chosen.shape}"
            )
    else:
        check_heads(heads, *nas.shape[-2:])
        chosen = np.zeros(nas.shape[-2:], bool)
        chosen[tuple(np.array(heads).T)] = True
    aligned = jnp.sum(jnp.where(chosen, jnp.square(jax.nn.relu(nas)), 0), axis=(-2, -1))
    return aligned / jnp.square(jnp.subtract(hi, lo).astype(nas.dtype))


def check_heads(heads: Sequence[tuple[int, int]], layers: int | None, number: int) -> None:
    """Raises ValueError unless there is a head and each is one of the model's; None: any layer."""
    if not heads:
        raise ValueError("heads: expected at least one (layer, head), got none")
    for layer, head in heads:
        if not 0 <= head < number or layer < 0 or (layers is not None and layer >= layers):
            known = f"{layers} layers of {number} heads" if layers is not None else f"{number} heads a layer"
            raise ValueError(f"heads: expected (layer, head) of {known}, got {(layer, head)}")


def _row_normaliser(
    query: Array, key: Array, mask: Array | None, block: int, heads_at_once: int | None
) -> Array:
    """The log-sum-exp of every row, ``[*layers, kv_heads, repeats, tokens]``; the queries are scaled."""
    tokens = key.shape[-2]
    # Causality saves nearly half of the work where a block meets only the keys up to its segment's end.
    blocks = math.ceil(tokens / block)
    step = math.ceil(blocks / _SEGMENTS) * block
    segments = [(begin, min(begin + step, tokens)) for begin in range(0, tokens, step)]

    @jax.checkpoint
    def tile(query: Array, key: Array, first: Array | int) -> Array:
        """Normalisers of neighbouring rows, the first of which is row ``first``."""
        # Keys first: the sum then runs over whole vectors of rows, which a CPU does in parallel.
        scores = key @ query.T
        column, row = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
        valid = column <= first + row
        if mask is not None:
            valid &= mask[: len(key), None]
        scores = jnp.where(valid, scores, -jnp.inf)
        highest = jax.lax.stop_gradient(scores.max(0))
        finite = jnp.where(jnp.isfinite(highest), highest, 0)
        return jnp.log(jnp.sum(jnp.exp(scores - finite), axis=0)) + finite

    def one_head(query: Array, key: Array) -> Array:
        found = []
        for begin, end in segments:
            blocks = (end - begin) // block
            rows, keys = query[begin:end], key[:end]
            if blocks > 1:
                starts = begin + block * jnp.arange(blocks)
                of_blocks = rows[: blocks * block].reshape(blocks, block, -1)
                found.append(jax.lax.map(lambda x, keys=keys: tile(x[0], keys, x[1]), (of_blocks, starts)))
                begin, rows = begin + blocks * block, rows[blocks * block :]
            if len(rows):
                found.append(tile(rows, keys, begin))
        return jnp.concatenate([each.ravel() for each in found])

    def of_group(query: Array, key: Array) -> Array:
        return jax.vmap(lambda each: one_head(each, key))(query)

    if heads_at_once is None and jax.default_backend() != "cpu":
        for _ in range(key.ndim - 2):
            of_group = jax.vmap(of_group)
        return of_group(query, key)
    repeats = query.shape[-3]
    groups = max(1, (heads_at_once or 1) // repeats)
    flat = query.reshape(-1, *query.shape[-3:]), key.reshape(-1, *key.shape[-2:])
    found = jax.lax.map(lambda pair: of_group(*pair), flat, batch_size=groups if groups > 1 else None)
    return found.reshape(query.shape[:-1])


def _check_positions(tokens: int, t_yes: ArrayLike, t_no: ArrayLike, lo: ArrayLike, hi: ArrayLike) -> None:
    """Refuses positions out of order; traced ones cannot be looked at and pass."""
    positions = {"t_yes": t_yes, "t_no": t_no, "lo": lo, "hi": hi}
    known = {name: int(at) for name, at in positions.items() if not isinstance(at, Tracer)}  # pyright: ignore[reportArgumentType]
    if len(known) == len(positions) and not (
        min(known["t_yes"], known["t_no"]) >= 0
        and max(known["t_yes"], known["t_no"]) < known["lo"] < known["hi"] <= tokens
    ):
        given = ", ".join(f"{name} = {at}" for name, at in known.items())
        raise ValueError(
            f"lo: expected t_yes and t_no below lo, and lo < hi <= {tokens}: the instruction comes first, and"
            f" only what follows it counts; got {given}"
        )


def _wide(name: str, array: ArrayLike) -> Array:
    """The array in float32 or wider."""
    array = jnp.asarray(array)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name}: expected a floating dtype, got {array.dtype}")
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
