"""Exact BM25 on the device: five variants and the Okapi form of rank_bm25.

With N documents, df documents that hold the term, tf occurrences in the document, dl tokens in the document,
B = 1 - b + b dl / mean dl and c = tf / B, a term adds

    robertson  ln(max(1, (N - df + .5) / (df + .5))) tf / (k1 B + tf)
    lucene     ln(1 + (N - df + .5) / (df + .5)) tf / (k1 B + tf)
    atire      ln(N / df) tf (k1 + 1) / (k1 B + tf)
    bm25l      ln((N + 1) / (df + .5)) (k1 + 1) (c + delta) / (k1 + c + delta)
    bm25plus   ln((N + 1) / df) ((k1 + 1) tf / (k1 B + tf) + delta)
    okapi      (ln(N - df + .5) - ln(df + .5)) tf (k1 + 1) / (k1 B + tf); a negative logarithm is replaced by
               0.25 of its mean over the terms that occur

Papers: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009; the variants
after Kamphuis et al., "Which BM25 Do You Mean?", 2020, and Lu, "BM25S", arXiv:2407.03618, whose
eager scoring (all weights computed when the index is built) is used here. bm25l and bm25plus give documents
without the term a score too.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxneg.retrieval.arguments import explicit_sharding, one_of
from jaxneg.retrieval.dense_search import Retrieved, top_documents

VARIANTS = ("robertson", "lucene", "atire", "bm25l", "bm25plus", "okapi")
# A table of all term weights up to this many numbers (128 MiB in float32) is faster than postings.
TABLE_LIMIT = 2**25
OKAPI_FLOOR = 0.25


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BM25Index:
    """Term weights of a collection, made by `bm25_index`; a pytree.

    Attributes:
        table: weight of every term in every document, or None where only postings are kept.
        weights: weight of each posting above the term's weight in documents without it, by term.
        documents: document of each posting.
        offsets: postings of term t are offsets[t] to offsets[t + 1].
        absent: weight of each term in documents without it; 0 but for bm25l and bm25plus.
        num_documents: static.
        longest: static; postings of the most frequent term.
    """

    table: Float[Array, "vocabulary documents"] | None
    weights: Float[Array, "postings"]
    documents: Int[Array, "postings"]
    offsets: Int[Array, "vocabulary_and_one"]
    absent: Float[Array, "vocabulary"]
    num_documents: int = field(metadata={"static": True})
    longest: int = field(metadata={"static": True})


def _inverse_document_frequency(variant: str, df: np.ndarray, n: int) -> np.ndarray:
    """Of the terms that occur, in float64."""
    if variant == "robertson":
        return np.log(np.maximum(1.0, (n - df + 0.5) / (df + 0.5)))
    if variant == "lucene":
        return np.log(1.0 + (n - df + 0.5) / (df + 0.5))
    if variant == "atire":
        return np.log(n / df)
    if variant == "bm25l":
        return np.log((n + 1) / (df + 0.5))
    if variant == "bm25plus":
        return np.log((n + 1) / df)
    idf = np.log(n - df + 0.5) - np.log(df + 0.5)
    return np.where(idf < 0, OKAPI_FLOOR * idf.mean(), idf)


def _term_frequency_part(
    variant: str, tf: np.ndarray, norm: np.ndarray, k1: float, delta: float
) -> np.ndarray:
    """What multiplies the inverse document frequency; ``norm`` is B."""
    if variant in ("robertson", "lucene"):
        return tf / (k1 * norm + tf)
    if variant in ("atire", "okapi"):
        return tf * (k1 + 1) / (k1 * norm + tf)
    if variant == "bm25l":
        c = tf / norm
        return (k1 + 1) * (c + delta) / (k1 + c + delta)
    return (k1 + 1) * tf / (k1 * norm + tf) + delta


def bm25_index(
    docs: Int[np.ndarray, "documents length"],
    vocab_size: int,
    *,
    variant: str = "lucene",
    k1: float = 1.5,
    b: float = 0.75,
    delta: float = 0.5,
    table: bool | None = None,
) -> BM25Index:
    """Weights of every term in every document that holds it, computed once on the host.

    Args:
        docs: token numbers, -1 for padding (`token_ids`).
        vocab_size: token numbers are below it.
        variant: "robertson", "lucene", "atire", "bm25l", "bm25plus" or "okapi".
        k1: saturation of the term frequency, at least 0. Anserini has 0.9, Lucene 1.2.
        b: strength of the length normalisation, in [0, 1]. Anserini has 0.4.
        delta: lift of bm25l and bm25plus, at least 0.
        table: keep the full [vocabulary, documents] table, which scores fastest; None: where it has at most
            2**25 numbers.

    Returns:
        A `BM25Index` in float32 (float64 where jax_enable_x64 is set).

    Raises:
        ValueError: no document, a token number outside of the vocabulary, an unknown variant, or a k1, b or
            delta out of range.
        TypeError: tokens that are not integers.

    Source:
        arXiv:2407.03618 (eager scoring of the variants); okapi: rank_bm25.

    Example:
        >>> index = bm25_index(np.array([[0, 1], [1, -1]]), 2)
        >>> index.num_documents, index.longest
        (2, 2)
    """
    one_of("variant", variant, VARIANTS)
    for name, value, low, high in (("k1", k1, 0, np.inf), ("b", b, 0, 1), ("delta", delta, 0, np.inf)):
        if not low <= value <= high:
            raise ValueError(f"{name}: expected a number in [{low}, {high}], got {value}")
    docs = np.asarray(docs)
    if not np.issubdtype(docs.dtype, np.integer):
        raise TypeError(f"docs: expected integer token numbers, got dtype {docs.dtype}")
    if docs.ndim != 2 or docs.shape[0] == 0:
        raise ValueError(
            f"docs: expected shape [documents, length] with at least one document, got {docs.shape}"
        )
    if docs.size and docs.max() >= vocab_size:
        row, column = (int(i) for i in np.argwhere(docs >= vocab_size)[0])
        raise ValueError(
            f"docs: expected token numbers below vocab_size = {vocab_size}; "
            f"document {row} has {docs[row, column]}"
        )
    n = docs.shape[0]
    rows, columns = np.nonzero(docs >= 0)
    pairs, tf = np.unique(docs[rows, columns].astype(np.int64) * n + rows, return_counts=True)
    term, document = pairs // n, pairs % n
    df = np.bincount(term, minlength=vocab_size)
    length = (docs >= 0).sum(axis=1)
    norm = 1.0 - b + b * length / max(length.mean(), 1.0 / n)
    occurs = df > 0
    idf = np.zeros(vocab_size)
    if occurs.any():
        idf[occurs] = _inverse_document_frequency(variant, df[occurs].astype(np.float64), n)
    part = _term_frequency_part(variant, tf.astype(np.float64), norm[document], k1, delta)
    empty = np.zeros(1)
    absent = (
        idf * _term_frequency_part(variant, empty, np.ones(1), k1, delta)
        if variant in ("bm25l", "bm25plus")
        else np.zeros(vocab_size)
    )
    weight = idf[term] * part
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    full = None
    if table if table is not None else vocab_size * n <= TABLE_LIMIT:
        full = np.repeat(absent[:, None], n, axis=1)
        full[term, document] = weight
    return BM25Index(
        table=None if full is None else jnp.asarray(full, dtype),
        weights=jnp.asarray(weight - absent[term], dtype),
        documents=jnp.asarray(document, jnp.int32),
        offsets=jnp.asarray(np.concatenate([[0], np.cumsum(df)]), jnp.int32),
        absent=jnp.asarray(absent, dtype),
        num_documents=n,
        longest=int(df.max(initial=0)),
    )


def bm25_scores(index: BM25Index, queries: Int[Array, "queries length"]) -> Float[Array, "queries documents"]:
    """BM25 score of every document for every query.

    score = sum of the weights of the query's terms, each as often as it occurs in the query

    Args:
        index: of `bm25_index`.
        queries: token numbers, -1 for padding; numbers outside of the vocabulary are ignored.

    Returns:
        The scores, in the index's dtype.

    Raises:
        ValueError: queries of another rank.
        TypeError: tokens that are not integers.

    Source:
        arXiv:2407.03618 (eager scoring).

    Example:
        >>> index = bm25_index(np.array([[0, 1], [1, -1]]), 2)
        >>> bm25_scores(index, jnp.array([[0]])).shape
        (1, 2)
    """
    queries = jnp.asarray(queries)
    if not jnp.issubdtype(queries.dtype, jnp.integer):
        raise TypeError(f"queries: expected integer token numbers, got dtype {queries.dtype}")
    if queries.ndim != 2:
        raise ValueError(f"queries: expected shape [queries, length], got {queries.shape}")
    known = (queries >= 0) & (queries < index.absent.shape[0])
    by_query = jax.typeof(queries).sharding.spec[0]

    def like(*rest: None) -> NamedSharding | None:
        return explicit_sharding(queries, PartitionSpec(by_query, *rest))

    def look_up(values: Array, at: Array) -> Array:
        return values.at[at].get(mode="clip", out_sharding=like(*(None,) * (at.ndim + values.ndim - 2)))

    def add_term(scores: Array, position: tuple[Array, Array]) -> tuple[Array, None]:
        term, valid = position
        if index.table is not None:
            return scores + jnp.where(valid[:, None], look_up(index.table, term), 0.0), None
        posting = look_up(index.offsets, term)[:, None] + jnp.arange(index.longest)
        mine = (posting < look_up(index.offsets, term + 1)[:, None]) & valid[:, None]
        weight = jnp.where(mine, look_up(index.weights, posting), 0.0)
        absent = jnp.where(valid, look_up(index.absent, term), 0.0)
        add = jax.vmap(lambda row, documents, weights: row.at[documents].add(weights))
        return add(scores + absent[:, None], look_up(index.documents, posting), weight), None

    scores = jnp.zeros((queries.shape[0], index.num_documents), index.weights.dtype)
    if (sharding := like(None)) is not None:
        scores = jax.sharding.reshard(scores, sharding)
    scores, _ = jax.lax.scan(add_term, scores, (jnp.where(known, queries, 0).T, known.T))
    return scores


def bm25_search(
    index: BM25Index, queries: Int[Array, "queries length"], k: int, *, block_queries: int = 64
) -> Retrieved:
    """The k documents with the highest BM25 score for each query.

    Documents with none of the query's terms are not retrieved, so that a query without known terms finds
    nothing. Nothing is as large as queries times documents.

    Args:
        index: of `bm25_index`.
        queries: token numbers, -1 for padding; numbers outside of the vocabulary are ignored.
        k: length of the lists; what exceeds the documents found is missing.
        block_queries: queries that are scored at once.

    Returns:
        A `Retrieved`; equal scores keep the order of the documents.

    Raises:
        ValueError: queries of another rank, or a k or block below 1.
        TypeError: tokens that are not integers.

    Source:
        arXiv:2407.03618 (eager scoring).

    Example:
        >>> index = bm25_index(np.array([[0, 1], [1, -1]]), 2)
        >>> bm25_search(index, jnp.array([[0]]), 2).index.tolist()
        [[0, -1]]
    """
    if block_queries < 1:
        raise ValueError(f"block_queries: expected at least 1, got {block_queries}")
    queries = jnp.asarray(queries)
    if queries.ndim != 2:
        raise ValueError(f"queries: expected shape [queries, length], got {queries.shape}")

    def of_block(block: Int[Array, "block length"]) -> Retrieved:
        scores = bm25_scores(index, block)
        known = (block >= 0) & (block < index.absent.shape[0])
        absent = jnp.sum(index.absent.at[block].get(mode="clip"), axis=1, where=known, keepdims=True)
        # The sums are rounded in different orders.
        found = scores > absent + 1e-5 * jnp.abs(absent)
        return top_documents(jnp.where(found, scores, -jnp.inf), k)

    count = queries.shape[0]
    size = min(block_queries, count)
    blocks = jnp.pad(queries, ((0, -count % size), (0, 0)), constant_values=-1)
    found = jax.lax.map(of_block, blocks.reshape(-1, size, queries.shape[1]))
    return jax.tree.map(lambda x: x.reshape(-1, k)[:count], found)
