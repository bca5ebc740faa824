"""The sources of hard negatives that are compared, on a frozen target encoder.

The target encoder is latent semantic analysis (TF-IDF, truncated SVD, unit rows), and the teacher, in the
place of the paper's cross-encoder, is a stronger encoder: the collection's sentence embeddings, or a second
latent semantic analysis with other settings where there are none.
"""

import logging
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from experiments.collections import Collection
from jaxneg.retrieval import hybrid, lexical_overlap, mine_negatives, token_ids, tokenize

RERANKED = "bm25 re-ranked"
HYBRID = "bm25 + re-ranked"
BM25 = "bm25"


def contaminated(fraction: float) -> str:
    """The name of the contaminated source."""
    return f"bm25, {fraction:.0%} false"


@dataclass(frozen=True)
class Frozen:
    """A collection as the frozen encoders see it. A row is a (query, relevant document) pair."""

    queries: Float[np.ndarray, "queries dim"]
    docs: Float[np.ndarray, "documents dim"]
    relevant: Bool[np.ndarray, "queries documents"]
    excluded: Bool[np.ndarray, "queries documents"]
    """Never negatives of the query: its relevant documents and documents with the same text."""
    has_text: Bool[np.ndarray, "documents"]
    """Documents without text are neither positives nor negatives."""
    row_query: Int[np.ndarray, "rows"]
    row_positive: Int[np.ndarray, "rows"]
    bm25: Float[np.ndarray, "queries documents"]
    """Minus infinity where no term of the query occurs: such a document is not retrieved."""
    teacher: Float[np.ndarray, "queries documents"]
    overlap: Float[np.ndarray, "queries documents"]
    """Lexical overlap of query and document, weighted by inverse document frequency."""
    teacher_name: str


@dataclass(frozen=True)
class Negatives:
    """Explicit negatives of each row for each seed, the first ones first."""

    index: Int[np.ndarray, "seeds rows negatives"]
    valid: Bool[np.ndarray, "seeds rows negatives"]


def freeze(collection: Collection, dimensions: int) -> Frozen:
    """Embeds the collection and scores all pairs.

    Args:
        collection: the texts and judgments.
        dimensions: of the target encoder, fewer where the collection is smaller.

    Returns:
        All that is needed to pick negatives and to train.
    """
    tokens, query_tokens = tokenize(collection.texts), tokenize(collection.queries)
    queries, docs = latent_semantic_analysis(tokens, query_tokens, dimensions)
    if collection.teacher is not None:
        teacher_queries, teacher_docs = collection.teacher
        teacher_name = "sentence embeddings of the collection's folder (MiniLM)"
    else:
        teacher_queries, teacher_docs = latent_semantic_analysis(
            [_with_bigrams(row) for row in tokens],
            [_with_bigrams(row) for row in query_tokens],
            2 * dimensions,
        )
        teacher_name = "a second latent semantic analysis, of words and word pairs with twice the dimensions"
    _, text_number = np.unique(collection.texts, return_inverse=True)
    relevant_text = np.zeros((len(queries), text_number.max() + 1), bool)
    row_query, row_positive = np.nonzero(collection.relevant)
    relevant_text[row_query, text_number[row_positive]] = True
    has_text = np.array([bool(row) for row in tokens])
    usable = has_text[row_positive]
    return Frozen(
        queries=queries,
        docs=docs,
        relevant=collection.relevant,
        excluded=relevant_text[:, text_number],
        has_text=has_text,
        row_query=row_query[usable],
        row_positive=row_positive[usable],
        bm25=_bm25(tokens, query_tokens),
        teacher=teacher_queries @ teacher_docs.T,
        overlap=_overlap(tokens, query_tokens),
        teacher_name=teacher_name,
    )


def latent_semantic_analysis(
    tokens: list[list[str]], query_tokens: list[list[str]], dimensions: int
) -> tuple[Float[np.ndarray, "queries dim"], Float[np.ndarray, "documents dim"]]:
    """Unit embeddings by TF-IDF (sublinear, L2) and truncated SVD of the documents.

    Args:
        tokens: of each document.
        query_tokens: of each query.
        dimensions: to keep; at most one less than there are documents or terms.

    Returns:
        Embeddings of queries and documents; zero for a text without known tokens.
    """
    tfidf = TfidfVectorizer(analyzer=iter, sublinear_tf=True)  # pyright: ignore[reportArgumentType]
    weights = tfidf.fit_transform(tokens)
    svd = TruncatedSVD(min(dimensions, *(size - 1 for size in weights.shape)), random_state=0)
    docs = svd.fit_transform(weights)
    queries = svd.transform(tfidf.transform(query_tokens))
    return _unit(queries), _unit(docs)


def _unit(rows: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norm > 0, norm, 1.0)).astype(np.float32)


def _with_bigrams(row: list[str]) -> list[str]:
    return [*row, *(f"{a} {b}" for a, b in pairwise(row))]


def _bm25(tokens: list[list[str]], query_tokens: list[list[str]]) -> np.ndarray:
    import bm25s  # not at the top: it runs a jax computation when it is imported

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs at DEBUG by default
    index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    index.index(tokens, show_progress=False)
    scores = np.stack([index.get_scores(row) if row else np.zeros(len(tokens)) for row in query_tokens])
    return np.where(scores > 0, scores, -np.inf).astype(np.float32)


def _overlap(tokens: list[list[str]], query_tokens: list[list[str]]) -> np.ndarray:
    vocabulary = token_ids([*tokens, *query_tokens]).vocabulary
    docs, queries = (jnp.asarray(token_ids(rows, vocabulary).ids) for rows in (tokens, query_tokens))
    frequency = np.zeros(len(vocabulary))
    for row in tokens:
        frequency[[vocabulary[token] for token in set(row)]] += 1
    idf = jnp.asarray(np.log1p(len(tokens) / (1.0 + frequency)), jnp.float32)

    def of_query(row: Int[Array, "length"]) -> Float[Array, "documents"]:
        return lexical_overlap(jnp.broadcast_to(row, (len(tokens), row.size)), docs, idf)

    return np.asarray(jax.lax.map(of_query, queries))


def negative_sources(
    frozen: Frozen,
    *,
    count: int,
    seeds: int,
    skip: int,
    rerank_depth: int,
    relative_margin: float,
    contamination: tuple[float, ...],
) -> dict[str, Negatives]:
    """The negatives of every source.

    Args:
        frozen: the collection.
        count: negatives a row; a source with fewer has invalid slots.
        seeds: random draws of the sources that are random; the others repeat.
        skip: documents that "dense, skip" leaves out from the top.
        rerank_depth: BM25 candidates that the teacher sorts again.
        relative_margin: of TopK-PercPos: 0.05 keeps what scores below 95 % of the least positive.
        contamination: shares of slots of "bm25" that are replaced by other relevant documents of the query.

    Returns:
        Negatives by name of source.
    """
    similarity = np.where(frozen.has_text, frozen.queries @ frozen.docs.T, -np.inf)
    # Where no text is, there is no positive either that a margin could be measured from.
    positive = frozen.excluded & frozen.has_text
    most = int(positive.sum(axis=1).max())

    def top(scores, **options) -> Int[Array, "queries negatives"]:
        # A retriever as its own program: many small ones would take longer to compile.
        mine = partial(mine_negatives, num_negatives=count, max_positives=most, **options)
        return jax.jit(mine)(scores, positive).index

    def for_rows(index: Int[Array, "queries negatives"]) -> Negatives:
        rows = np.broadcast_to(np.asarray(index)[frozen.row_query], (seeds, len(frozen.row_query), count))
        return Negatives(np.maximum(rows, 0), rows >= 0)

    lexical = top(frozen.bm25)
    teacher = jnp.asarray(frozen.teacher)
    reranked = top(
        frozen.bm25,
        range_max=rerank_depth,
        rescore=lambda queries, documents: teacher[queries[:, None], documents],
    )
    sources = {
        "random": random_negatives(frozen, count, seeds),
        BM25: for_rows(lexical),
        "dense": for_rows(top(similarity)),
        f"dense, skip {skip}": for_rows(top(similarity, range_min=skip)),
        f"dense, below {1 - relative_margin:.0%}": for_rows(
            top(similarity, relative_margin=relative_margin, range_max=len(frozen.docs))
        ),
        RERANKED: for_rows(reranked),
        HYBRID: for_rows(hybrid(lexical, reranked, "union", count)),
    }
    for fraction in contamination:
        sources[contaminated(fraction)] = contaminate(frozen, sources[BM25], fraction)
    return sources


def random_negatives(frozen: Frozen, count: int, seeds: int) -> Negatives:
    """Documents drawn uniformly without replacement, for each row and seed anew.

    Args:
        frozen: the collection.
        count: negatives a row.
        seeds: number of draws.

    Returns:
        The negatives.
    """
    index, valid = [], []
    barred = (frozen.excluded | ~frozen.has_text)[frozen.row_query]
    for seed in range(seeds):
        lottery = np.random.default_rng([seed, 0]).random(barred.shape, np.float32)
        lottery[barred] = np.inf
        drawn = np.argpartition(lottery, min(count, lottery.shape[1] - 1), axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(lottery, drawn, axis=1), axis=1)
        drawn = np.take_along_axis(drawn, order, axis=1)
        index.append(drawn)
        valid.append(np.isfinite(np.take_along_axis(lottery, drawn, axis=1)))
    return Negatives(np.stack(index), np.stack(valid))


def contaminate(frozen: Frozen, negatives: Negatives, fraction: float, *, last: bool = False) -> Negatives:
    """Replaces slots by other relevant documents of the same query: false negatives.

    Each slot is replaced with probability ``fraction``, as long as the query has further relevant documents;
    what a smaller fraction replaces, a larger one replaces too.

    Args:
        frozen: the collection.
        negatives: clean ones.
        fraction: share of slots to replace.
        last: replace the last slots of every row instead, so that the source's own best negatives stay.

    Returns:
        The contaminated negatives.
    """
    rows = len(frozen.row_query)
    count = negatives.index.shape[2]
    relevant = frozen.relevant & frozen.has_text
    # Relevant documents first, in their order; room for as many as there are slots.
    listed = np.argsort(~relevant, axis=1, kind="stable")[:, : max(count, relevant.sum(axis=1).max())]
    documents = listed[frozen.row_query]
    others = relevant[frozen.row_query[:, None], documents] & (documents != frozen.row_positive[:, None])
    available = others.sum(axis=1)
    index, valid = negatives.index.copy(), negatives.valid.copy()
    for seed in range(len(index)):
        rng = np.random.default_rng([seed, 1])
        lottery = np.where(others, rng.random(others.shape), np.inf)
        false = np.take_along_axis(documents, np.argsort(lottery, axis=1), axis=1)[:, :count]
        place = 1.0 - (np.arange(count) + 0.5) / count if last else rng.random((rows, count))
        chosen = np.broadcast_to(place < fraction, (rows, count))
        turn = np.cumsum(chosen, axis=1) - 1
        chosen = chosen & (turn < available[:, None])
        replacement = np.take_along_axis(false, np.maximum(turn, 0), axis=1)
        index[seed] = np.where(chosen, replacement, index[seed])
        valid[seed] |= chosen
    return Negatives(index, valid)
