"""Pooling bias on collections with full judgments: the pool is simulated, false negatives are counted.

Labels are the relevant documents among a basic retriever's first k; negatives are the first n of BM25 or of a
dense retriever that are not labelled. The relevance model sees embeddings, the selection model what BM25 saw;
the relevance model re-ranks the dense retriever's first documents, and nDCG@10 counts all judgments.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from sklearn.decomposition import PCA

from experiments.cet.training import (
    CUTOFF,
    Arm,
    Listed,
    Recipe,
    Run,
    Stage,
    draw_triples,
    train,
    without_stages,
)
from experiments.collections import Collection
from experiments.eci.sources import latent_semantic_analysis
from jaxneg.retrieval import (
    bm25_index,
    bm25_scores,
    denoise_weight,
    mrr_at_k,
    ndcg_at_k,
    oracle_weight,
    perc_pos_weight,
    pool_labels,
    token_ids,
    tokenize,
    top_negatives,
)

RANDOM, BM25, DENSE = "random", "BM25", "dense"
NAIVE_BM25, NAIVE_DENSE = Arm("naive", BM25), Arm("naive", DENSE)
CET = Arm("CET, tau 1", DENSE, "coupled")
ARMS: tuple[Arm, ...] = (
    Arm("naive", RANDOM),
    NAIVE_BM25,
    NAIVE_DENSE,
    Arm("oracle", DENSE, filter="oracle"),
    Arm("denoised", DENSE, filter="denoise"),
    Arm("below 95 % of the positive", DENSE, filter="perc-pos"),
    CET,
    replace(CET, name="CET, tau 1, mean weight 1", normalise="mean"),
    replace(CET, name="CET, tau 10", tau=10.0),
    replace(CET, name="constant weight, tau 1", weighting="constant"),
    replace(CET, name="CET, tau 1, positives too", positive_ips=True),
    replace(CET, name="CET, tau 10, shared inputs", tau=10.0, inputs="shared"),
)
"""All that is trained; the tables show every one."""
DECISIVE: tuple[Arm, ...] = (NAIVE_BM25, NAIVE_DENSE, CET)
"""What the claims need."""
DIMENSIONS, LSA_DIMENSIONS, COSINE_SCALE = 48, 256, 5.0
DEPTHS = (5, 10, 20, 50)
"""Of the pools whose false negatives are counted without training."""
_pool = jax.jit(pool_labels, static_argnums=2)
_first = jax.jit(top_negatives, static_argnums=2)
COUNTED = 20
"""Negatives of a query that are counted so."""

BM25_REFERENCE = {"cranfield": (0.3331, 0.4732), "cisi": (0.3113, 0.5606), "vaswani": (0.3807, 0.6611)}
"""nDCG@10 and MRR@10 of BM25 (k1 0.9, b 0.4) in an independent run."""
DENSE_REFERENCE = {"cranfield": (0.3953, 0.5346), "cisi": (0.4192, 0.5963)}
"""Of MiniLM."""


@dataclass(frozen=True)
class Pooling:
    """How labels and negatives come about."""

    by: str
    """BM25, or RANDOM: as many labels as BM25's pool gives a query, drawn from all relevant documents."""
    depth: int
    """Of the pool."""
    listed: int
    """Documents of a retriever that negatives are drawn from."""

    @property
    def name(self) -> str:
        """For tables."""
        what = f"BM25's first {self.depth}" if self.by == BM25 else f"random, as many as BM25-{self.depth}"
        return f"labels: {what}; negatives: first {self.listed}"


@dataclass(frozen=True)
class Scored:
    """A collection with all that retrievers and models see of it."""

    name: str
    dense_name: str
    relevant: Bool[np.ndarray, "queries documents"]
    retrievers: dict[str, Float[np.ndarray, "queries documents"]]
    """Minus infinity: not retrieved."""
    data: dict[str, np.ndarray]


def score(collection: Collection) -> Scored:
    """Embeds the collection and scores all pairs.

    Args:
        collection: texts, judgments, and sentence embeddings if it has them; else a latent semantic analysis
            is the dense retriever.

    Returns:
        Scores and features.
    """
    tokens, query_tokens = tokenize(collection.texts), tokenize(collection.queries)
    docs = token_ids(tokens)
    queries = token_ids(query_tokens, docs.vocabulary)
    index = bm25_index(docs.ids, len(docs.vocabulary), k1=0.9, b=0.4)
    lexical = np.asarray(bm25_scores(index, jnp.asarray(queries.ids)))
    if collection.teacher is not None:
        embedded, dense_name = collection.teacher, "MiniLM sentence embeddings of the folder"
    else:
        embedded = latent_semantic_analysis(tokens, query_tokens, LSA_DIMENSIONS)[:2]
        dense_name = f"latent semantic analysis with at most {LSA_DIMENSIONS} dimensions"
    q, d = (np.asarray(rows, np.float32) for rows in embedded)
    dense = q @ d.T
    dimensions = min(DIMENSIONS, d.shape[1], len(d) - 1)
    pca = PCA(dimensions, whiten=True, random_state=0).fit(d)
    rank = np.argsort(np.argsort(-lexical, axis=1, kind="stable"), axis=1) + 1
    present = np.zeros((len(tokens), len(docs.vocabulary)), bool)
    rows = np.repeat(np.arange(len(tokens)), docs.ids.shape[1])
    present[rows[docs.ids.ravel() >= 0], docs.ids[docs.ids >= 0]] = True
    coverage = np.stack(
        [
            present[:, list(words)].mean(axis=1) if words else np.zeros(len(tokens))
            for words in ({int(t) for t in row if t >= 0} for row in queries.ids)
        ]
    )
    best = np.maximum(lexical.max(axis=1, keepdims=True), 1e-6)
    pooling = np.stack([lexical / best, np.log1p(rank) / 7, coverage], axis=-1)
    data = {
        "queries": pca.transform(q),
        "documents": pca.transform(d),
        "cosine": COSINE_SCALE * dense,
        "pooling": pooling,
    }
    return Scored(
        collection.name,
        dense_name,
        collection.relevant,
        {BM25: np.where(lexical > 0, lexical, -np.inf), DENSE: dense},
        {name: np.asarray(array, np.float32) for name, array in data.items()},
    )


def see(data: dict[str, Array], queries: Array, documents: Array) -> tuple[Array, Array]:
    """What both models see of pairs: products and distances of embeddings with the cosine; what BM25 saw."""
    q, d = data["queries"][queries], data["documents"][documents]
    cosine = data["cosine"][queries, documents][:, None]
    content = jnp.concatenate([q * d, jnp.abs(q - d), cosine], axis=1)
    return content, data["pooling"][queries, documents]


def labels(scored: Scored, pooling: Pooling, seed: int = 0) -> Bool[np.ndarray, "queries documents"]:
    """What annotators would have labelled.

    Args:
        scored: the collection.
        pooling: how.
        seed: of random pools.

    Returns:
        Labels.
    """
    label = np.asarray(_pool(scored.retrievers[BM25], scored.relevant, pooling.depth))
    if pooling.by == BM25:
        return label
    lottery = np.random.default_rng([seed, 3]).random(label.shape)
    lottery[~scored.relevant] = np.inf
    rank = np.argsort(np.argsort(lottery, axis=1), axis=1)
    return scored.relevant & (rank < label.sum(axis=1, keepdims=True))


def false_negative_shares(scored: Scored) -> dict[str, np.ndarray]:
    """Share of relevant documents among the first unlabelled ones, for each depth of BM25's pool.

    Args:
        scored: the collection.

    Returns:
        ``[DEPTHS]`` by retriever.
    """
    found: dict[str, list[float]] = {BM25: [], DENSE: []}
    for depth in DEPTHS:
        label = labels(scored, Pooling(BM25, depth, COUNTED))
        for name, shares in found.items():
            shares.append(_share(scored, np.asarray(_first(scored.retrievers[name], label, COUNTED))))
    return {name: np.array(shares) for name, shares in found.items()}


def retriever_quality(scored: Scored) -> dict[str, np.ndarray]:
    """NDCG@10 and MRR@10 of the retrievers themselves.

    Args:
        scored: the collection.

    Returns:
        ``[2]`` by retriever.
    """
    return {
        name: np.array(
            [
                float(np.mean(jax.jit(metric, static_argnums=2)(scores, scored.relevant, CUTOFF)))
                for metric in (ndcg_at_k, mrr_at_k)
            ]
        )
        for name, scores in scored.retrievers.items()
    }


def compare(
    scored: Scored,
    pooling: Pooling,
    recipe: Recipe,
    *,
    seeds: int,
    folds: int,
    steps: int,
    batch: int,
    candidates: int,
    arms: tuple[Arm, ...] = ARMS,
    progress: Callable[[Any], Any] = iter,
    stage: Stage = without_stages,
) -> dict[str, np.ndarray]:
    """Trains every arm in every seed and fold; each query is tested by the model of the other folds.

    Args:
        scored: the collection.
        pooling: how labels and negatives come about.
        recipe: of the training.
        seeds: repetitions.
        folds: parts of the queries.
        steps: of a training.
        batch: pairs in a step.
        candidates: documents of the dense retriever that are re-ranked.
        arms: the arms.
        progress: wraps the arms.
        stage: keeps the results of an arm.

    Returns:
        ``ndcg``, ``mrr``, ``false_weight`` and ``false_share`` ``[arms, seeds]``.
    """
    queries = len(scored.relevant)
    runs = [(seed, fold) for seed in range(seeds) for fold in range(folds)]
    fold_of = [np.random.default_rng([seed, 2]).permutation(queries) % folds for seed in range(seeds)]
    label = [labels(scored, pooling, seed) for seed in range(seeds)]
    lottery = [np.random.default_rng([seed, 4]).random(scored.relevant.shape) for seed in range(seeds)]

    def lists(name: str, seed: int) -> Int[np.ndarray, "queries n"]:
        scores = lottery[seed] if name == RANDOM else scored.retrievers[name]
        return np.asarray(_first(scores, label[seed], pooling.listed))

    triples = {}
    for name in dict.fromkeys([*(arm.negatives for arm in arms), BM25]):
        negatives = [lists(name, seed) for seed in range(seeds)]
        triples[name] = np.stack(
            [
                draw_triples(
                    np.random.default_rng([seed, fold, 5]),
                    label[seed],
                    negatives[seed],
                    np.flatnonzero(fold_of[seed] != fold),
                    steps,
                    batch,
                )
                for seed, fold in runs
            ]
        )
    ranked = np.asarray(_first(scored.retrievers[DENSE], np.zeros_like(scored.relevant), candidates))
    listed = Listed(jnp.asarray(ranked), jnp.asarray(scored.relevant))
    data = jax.tree.map(jnp.asarray, scored.data)
    keys = jax.random.split(jax.random.key(0), len(runs))

    def result(arm: Arm, weight: Any = None) -> tuple[dict[str, np.ndarray], np.ndarray]:
        drawn = triples[arm.negatives]
        false = scored.relevant[drawn[..., 0], drawn[..., 2]]
        weight = np.ones(false.shape, np.float32) if weight is None else np.asarray(weight)
        each = Run(keys, *(jnp.asarray(x) for x in (drawn, weight, false)))
        return train(see, data, listed, each, arm, recipe), false

    def weight_of(arm: Arm) -> Any:
        drawn = triples[arm.negatives]
        query, positive, negative = np.moveaxis(drawn, -1, 0)
        if arm.filter == "oracle":
            return oracle_weight(scored.relevant[query, negative])
        if arm.filter == "perc-pos":
            similarity = scored.retrievers[DENSE]
            return perc_pos_weight(similarity[query, positive], similarity[query, negative])
        if arm.filter == "denoise":
            return _denoised(scored, ranked, label, result(NAIVE_BM25)[0]["scores"], drawn, folds)
        return None

    tested = np.stack([fold_of[seed] == fold for seed, fold in runs])

    def measure(arm: Arm) -> dict[str, np.ndarray]:
        trained, false = result(arm, weight_of(arm))
        found = {"false_share": false.reshape(seeds, -1).mean(axis=1), "false_weight": np.zeros(seeds)}
        for name in ("ndcg", "mrr"):
            values = np.where(tested, trained[name], 0.0).reshape(seeds, folds, queries)
            found[name] = values.sum(axis=(1, 2)) / queries
        if arm.filter != "oracle":
            found["false_weight"] = trained["false_weight"].reshape(seeds, folds).mean(axis=1)
        return found

    found = [stage(place, partial(measure, arm)) for place, arm in enumerate(progress(arms))]
    return {name: np.stack([of[name] for of in found]) for name in found[0]}


def _denoised(
    scored: Scored,
    ranked: np.ndarray,
    label: list[np.ndarray],
    teacher: Float[np.ndarray, "runs queries candidates"],
    triples: np.ndarray,
    folds: int,
) -> np.ndarray:
    """The teacher has scored the dense retriever's candidates: negatives are among them, labels mostly."""
    weights = []
    for run, (scores, drawn) in enumerate(zip(teacher, triples, strict=True)):
        everywhere = np.full(scored.relevant.shape, np.nan, np.float32)
        rows = np.broadcast_to(np.arange(len(ranked))[:, None], ranked.shape)
        everywhere[rows[ranked >= 0], ranked[ranked >= 0]] = scores[ranked >= 0]
        threshold = float(np.nanmedian(everywhere[label[run // folds]]))
        weights.append(np.asarray(denoise_weight(everywhere[drawn[..., 0], drawn[..., 2]], threshold)))
    return np.stack(weights)


def _share(scored: Scored, negatives: np.ndarray) -> float:
    relevant = np.take_along_axis(scored.relevant, np.maximum(negatives, 0), axis=1)
    return float(relevant[negatives >= 0].mean())
