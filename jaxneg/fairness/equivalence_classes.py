"""Equivalence classes: rows that look alike on all columns, found by one sort and never by a hash."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxneg.fairness.arguments import Data, integer_codes, known, row_weight

BITS = 31
"""Of a sort key, an unsigned word of 32 bits; so ``UNUSED`` is no key."""
UNUSED = np.uint32(2**32 - 1)


def equivalence_classes(
    G: Int[Data, "rows columns"],
    cards: Int[Data, " columns"] | Sequence[int],
    weight: Float[Data, " rows"] | None = None,
) -> tuple[Int[Array, " rows"], Float[Array, " rows"]]:
    """The class of each row and the weight of each class.

    ``gid[i] = |{distinct rows below G[i]}|,  count[c] = sum of weight over rows with gid = c``

    Columns are packed into words, and a full word is replaced by its dense rank, so that one column after the
    other finds room in the same word: no hash, no collision.

    Args:
      G: A generalised table: codes not below 0.
      cards: For each column a number above all its codes. If they are known when the program is traced,
        columns share words, else the rows are sorted by all columns at once.
      weight: Of each row, 0 where it is left out; 1 by default.

    Returns:
      ``gid``, from 0 in lexicographic order of the rows, and ``count [rows]``, of which ``count[c]`` belongs
      to class c; classes of weight 0 hold no row that counts.

    Raises:
      ValueError: If shapes differ, or a known code is not below its column's cardinality.
      TypeError: If ``G`` does not hold integers.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import equivalence_classes
      >>> gid, count = equivalence_classes(np.array([[1, 0], [0, 1], [1, 0]]), [2, 2])
      >>> gid.tolist(), count.tolist()
      ([1, 0, 1], [1.0, 2.0, 0.0])
    """
    G = integer_codes("G", G, 2)
    if np.shape(cards) != (G.shape[1],):
        raise ValueError(
            f"cards: expected one number for each of {G.shape[1]} columns, got {np.shape(cards)}"
        )
    weight = row_weight("weight", weight, G.shape[0])
    if not known(cards):
        return _classes(G, None, weight)
    sizes = tuple(int(card) for card in np.asarray(cards))
    if known(G) and not ((np.asarray(G) >= 0) & (np.asarray(G) < np.asarray(sizes))).all():
        raise ValueError(
            f"G: expected codes from 0 to below cards = {sizes}, got {int(jnp.min(G))} to {int(jnp.max(G))}"
        )
    return _classes(G, sizes, weight)


def classes(G: Array, cards: tuple[int, ...] | None, weight: Array) -> tuple[Array, Array]:
    """:func:`equivalence_classes` without its checks; ``cards`` are static, or None where unknown."""
    gid = _rank(_packed(G, cards))
    return gid, jax.ops.segment_sum(weight, gid, G.shape[0])


_classes = jax.jit(classes, static_argnums=1)


def class_sizes(G: Array, cards: tuple[int, ...] | None, rows: Array) -> Array:
    """``[rows]``: the sizes of the classes of the rows that are true, in any order, and zeros."""
    n = G.shape[0]
    words = [jnp.where(rows, word, UNUSED) for word in _packed(G, cards)]
    ordered = lax.sort(words, num_keys=len(words), is_stable=False)
    counts = (ordered[0] != UNUSED).astype(jnp.int32)
    return jax.ops.segment_sum(counts, _numbered(ordered), n, indices_are_sorted=True)


def _packed(G: Array, cards: tuple[int, ...] | None) -> list[Array]:
    """Sort keys of the rows, the first the most significant, each of ``BITS`` bits at most.

    A word that is full is replaced by its rank among the words that occur, which makes room for more columns:
    sorting one word and looking the others up is several times quicker than sorting rows of words.
    """
    if cards is None:
        return [column.astype(jnp.uint32) for column in G.T]
    rank_bits = (G.shape[0] - 1).bit_length()
    words: list[Array] = []
    free = 0
    for j, card in enumerate(cards):
        bits = max(card - 1, 0).bit_length()
        column = G[:, j].astype(jnp.uint32)
        if words and bits > free and bits <= BITS - rank_bits:
            words[-1], free = _rank(words[-1:]).astype(jnp.uint32), BITS - rank_bits
        if not words or bits > free:
            words.append(column)
            free = BITS - bits
        else:
            words[-1] = (words[-1] << bits) | column
            free -= bits
    return words


def _rank(words: list[Array]) -> Array:
    """The place of each row's words among the different ones that occur."""
    n = words[0].shape[0]
    if len(words) == 1:
        ordered = jnp.sort(words[0])
        return _numbered([ordered])[jnp.searchsorted(ordered, words[0])]
    *ordered, order = lax.sort((*words, jnp.arange(n)), num_keys=len(words), is_stable=False)
    return jnp.zeros(n, jnp.int32).at[order].set(_numbered(ordered), unique_indices=True)


def _numbered(ordered: Any) -> Array:
    """Counts up, in sorted rows, wherever a row differs from the one before."""
    differs = jnp.zeros(ordered[0].shape[0] - 1, bool)
    for word in ordered:
        differs = differs | (word[1:] != word[:-1])
    return jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(differs, dtype=jnp.int32)])
