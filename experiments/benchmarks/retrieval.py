"""Mining, BM25, nDCG and ECI beside what users have for them.

Mining: sentence-transformers' ``mine_hard_negatives`` on equal embeddings, which a stub in the place of its
model hands out, and, for what is left without its data set of texts, PyTorch's product and top-k alone. Both
sides must mine the same negatives: a place may differ only where two scores are equal but for rounding.
BM25: bm25s and rank_bm25, the ten best documents of every query of a collection. nDCG: rax and scikit-learn.
ECI has no peer; the same formula is written in PyTorch. Results are compared before anything is timed.
"""

import importlib
import logging
import math
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.collections import TINY, data_folder, load_collection
from experiments.isolated import available_cores, in_a_process
from experiments.peers import require_same, torch_for
from jaxneg.retrieval import (
    bm25_index,
    bm25_search,
    eci,
    mine_negatives,
    ndcg_at_k,
    token_ids,
    tokenize,
    triplets,
)

PAIR_SECONDS = 120.0
ROUNDING = 2e-6
"""Scores nearer than this count as equal: cosines in float32, added up in another order."""


class Mining(NamedTuple):
    """Sizes of the mining problem."""

    queries: int = 2000
    documents: int = 50_000
    dim: int = 384
    topics: int = 500
    num_negatives: int = 4
    relative_margin: float = 0.05


class Metric(NamedTuple):
    """Sizes of the metric's input."""

    queries: int = 2000
    documents: int = 1000
    k: int = 10


class Score(NamedTuple):
    """Sizes of ECI's input."""

    rows: int = 100_000
    negatives: int = 16


def run(repeats: int = 11) -> dict[str, Any]:
    """Times every comparison on one core and on all.

    Args:
        repeats: pairs of samples for each.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` with a row for each comparison: ``ratio_median`` is the
        peer's time over ours, ``apart`` the largest relative difference of the results, for mining
        ``same_share`` the share of places with the same negative.

    Raises:
        ImportError: a peer is not installed.
        RuntimeError: the two sides' results differ.
    """
    torch_for("retrieval")
    for name in ("rank_bm25", "rax", "sentence_transformers", "datasets"):
        _peer(name)
    cores = available_cores()
    sizes = (Mining(), Mining(documents=5000)), Metric(), Score()
    return {
        "settings": {
            "mining": [size._asdict() for size in sizes[0]],
            **{type(size).__name__.lower(): size._asdict() for size in sizes[1:]},
        },
        "one_core": in_a_process(cores[:1], _times, *sizes, repeats),
        "all_cores": in_a_process(cores, _times, *sizes, repeats) if len(cores) > 1 else {},
    }


def _peer(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'retrieval' measures against {name} ({error}); pip install 'jaxneg[bench]'"
        ) from error


def _times(
    mining: tuple[Mining, ...], metric: Metric, score: Score, repeats: int
) -> dict[str, dict[str, Any]]:
    peaks = machine_peaks()
    mined = {
        f"{name}, {size.documents} documents": row
        for size in mining
        for name, row in mining_compared(size, repeats, peaks).items()
    }
    return {
        **mined,
        **bm25_compared(repeats),
        **ndcg_compared(metric, repeats),
        **eci_compared(score, repeats, peaks),
    }


def mining_inputs(size: Mining) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit embeddings of queries and documents by topic, and the positive of each query.

    Args:
        size: of the problem.

    Returns:
        Queries, documents, positives; a positive's neighbours lie on both sides of the margin.
    """
    rng = np.random.default_rng(0)

    def unit(rows: np.ndarray) -> np.ndarray:
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    topics = rng.normal(size=(size.topics, size.dim))
    d = unit(
        topics[rng.integers(0, size.topics, size.documents)] + rng.normal(size=(size.documents, size.dim))
    )
    positive = rng.choice(size.documents, size.queries, replace=False)
    q = unit(d[positive] + rng.normal(size=(size.queries, size.dim)) / math.sqrt(size.dim))
    return q, d, positive


def stub_model(torch: ModuleType, q: np.ndarray, d: np.ndarray) -> Any:
    """What ``mine_hard_negatives`` asks of a model, for texts "q17" and "d4": their given embeddings.

    Args:
        torch: the module.
        q: embeddings of the queries.
        d: embeddings of the documents.

    Returns:
        The model; its similarity is the product, as that of every model with unit embeddings.
    """

    class Model:
        device = torch.device("cpu")

        def encode_query(self, texts: list[str], **_: Any) -> np.ndarray:
            return q[[int(text[1:]) for text in texts]]

        def encode_document(self, texts: list[str], **_: Any) -> np.ndarray:
            return d[[int(text[1:]) for text in texts]]

        def similarity(self, a: Any, b: Any) -> Any:
            return torch.as_tensor(a) @ torch.as_tensor(b).T

        def similarity_pairwise(self, a: Any, b: Any) -> Any:
            return (torch.as_tensor(a) * torch.as_tensor(b)).sum(dim=-1)

    return Model()


def mining_compared(size: Mining, repeats: int, peaks: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Ours beside sentence-transformers, and beside PyTorch's product and top-k alone.

    Args:
        size: of the problem.
        repeats: pairs of samples.
        peaks: of the machine.

    Returns:
        A row for each peer.
    """
    torch = torch_for("retrieval")
    os.environ.setdefault("TQDM_DISABLE", "1")
    util = _peer("sentence_transformers.util")
    datasets = _peer("datasets")
    q, d, positive = mining_inputs(size)
    names = [f"d{number}" for number in range(size.documents)]
    pairs = datasets.Dataset.from_dict(
        {"anchor": [f"q{number}" for number in range(size.queries)], "positive": [names[i] for i in positive]}
    )
    model = stub_model(torch, q, d)
    options = {"num_negatives": size.num_negatives, "relative_margin": size.relative_margin}

    def peer() -> Any:
        return util.mine_hard_negatives(pairs, model, corpus=names, verbose=False, **options)

    ids = jnp.asarray(positive[:, None])
    mine = jax.jit(lambda q, d: mine_negatives((q, d), positive_ids=ids, **options))
    on_device = jnp.asarray(q), jnp.asarray(d)
    queries = np.arange(size.queries)

    def ours() -> np.ndarray:
        return triplets(queries, positive, mine(*on_device))

    mined, found = ours(), peer()
    theirs = np.array([[int(row[c][1:]) for c in ("anchor", "positive", "negative")] for row in found])
    same = _require_same_negatives(q, d, mined, theirs)
    depth = 10 * size.num_negatives + 2
    tensors = torch.from_numpy(q), torch.from_numpy(d)

    def peer_search() -> Any:
        with torch.no_grad():
            return torch.topk(tensors[0] @ tensors[1].T, depth, dim=1)

    flops = 2.0 * size.queries * size.documents * size.dim
    extra = {"same_share": same, "roofline_seconds": roofline_seconds(flops, d.nbytes, peaks)}
    return {
        "mining": _compared(ours, peer, repeats, extra),
        "product and top-k": _compared(lambda: mine(*on_device), peer_search, repeats, extra),
    }


def _require_same_negatives(q: np.ndarray, d: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of places with the same negative; the others must have the same score but for rounding."""
    if ours.shape != theirs.shape or not np.array_equal(ours[:, :2], theirs[:, :2]):
        raise RuntimeError(f"mining: the two sides give {len(ours)} and {len(theirs)} triplets, not the same")
    scores = [np.einsum("td,td->t", q[t[:, 0]], d[t[:, 2]]) for t in (ours, theirs)]
    apart = float(np.max(np.abs(scores[0] - scores[1]), initial=0.0))
    if apart > ROUNDING:
        raise RuntimeError(f"mining: the two sides' negatives differ by {apart:.1e} in score")
    return float(np.mean(ours[:, 2] == theirs[:, 2]))


def bm25_compared(repeats: int, k: int = 10) -> dict[str, dict[str, Any]]:
    """Every query of Cranfield and CISI, or of the embedded collection where they are not there.

    Args:
        repeats: pairs of samples.
        k: documents to find.

    Returns:
        A row for each collection and peer.
    """
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)
    rank_bm25 = _peer("rank_bm25")
    measured = {}
    folders = [data_folder() / name for name in ("cranfield", "cisi")]
    for folder in folders if all(folder.is_dir() for folder in folders) else [TINY]:
        collection = load_collection(folder)
        tokens, query_tokens = tokenize(collection.texts), tokenize(collection.queries)
        docs, vocabulary = token_ids(tokens)
        queries = jnp.asarray(token_ids(query_tokens, vocabulary).ids)
        index = bm25_index(docs, len(vocabulary))
        search = jax.jit(lambda queries, index=index: bm25_search(index, queries, k))
        theirs = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
        theirs.index(tokens, show_progress=False)
        okapi = rank_bm25.BM25Okapi(tokens)

        def peer(theirs: Any = theirs, query_tokens: Any = query_tokens) -> Any:
            return theirs.retrieve(query_tokens, k=k, show_progress=False)

        def slow_peer(okapi: Any = okapi, query_tokens: Any = query_tokens) -> Any:
            return [np.argsort(-okapi.get_scores(row), kind="stable")[:k] for row in query_tokens]

        found = search(queries)
        score = np.where(np.asarray(found.index) >= 0, found.score, 0.0)
        apart = require_same(f"bm25, {folder.name}", score, peer()[1])
        extra = {"apart": apart, "queries": len(collection.queries)}

        def ours(search: Any = search, queries: Any = queries) -> Any:
            return search(queries)

        for name, other in (("bm25s", peer), ("rank_bm25", slow_peer)):
            row = _compared(ours, other, repeats, extra)
            row["queries_per_second"] = len(collection.queries) / row["ours_seconds"]
            measured[f"bm25_{folder.name}_beside_{name}"] = row
    return measured


def ndcg_compared(size: Metric, repeats: int) -> dict[str, dict[str, Any]]:
    """Ours beside rax (under jit) and scikit-learn.

    Args:
        size: of the input.
        repeats: pairs of samples.

    Returns:
        A row for each peer.
    """
    from sklearn.metrics import ndcg_score

    rax = _peer("rax")
    rng = np.random.default_rng(0)
    shape = size.queries, size.documents
    scores = rng.permuted(np.tile(np.linspace(-1, 1, shape[1]), (shape[0], 1)), axis=1).astype(np.float32)
    rel = (rng.integers(1, 4, shape) * (rng.random(shape) < 0.05)).astype(np.float32)
    arrays = jnp.asarray(scores), jnp.asarray(rel)
    ours = jax.jit(lambda scores, rel: jnp.nanmean(ndcg_at_k(scores, rel, size.k)))
    linear = jax.jit(lambda s, r: rax.ndcg_metric(s, r, topn=size.k, gain_fn=lambda gain: gain))
    peers = {
        "rax": lambda: linear(*arrays),
        "scikit_learn": lambda: ndcg_score(rel, scores, k=size.k, ignore_ties=True),
    }
    measured = {}
    for name, peer in peers.items():
        apart = require_same(f"ndcg, {name}", np.asarray(ours(*arrays)), np.asarray(peer()))
        measured[f"ndcg_beside_{name}"] = _compared(lambda: ours(*arrays), peer, repeats, {"apart": apart})
    return measured


def eci_compared(size: Score, repeats: int, peaks: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Ours beside the formula written in PyTorch.

    Args:
        size: of the input.
        repeats: pairs of samples.
        peaks: of the machine.

    Returns:
        One row.
    """
    torch = torch_for("retrieval")
    rng = np.random.default_rng(0)
    positive = rng.uniform(0.2, 1, size.rows).astype(np.float32)
    negative = rng.uniform(-0.3, 0.8, (size.rows, size.negatives)).astype(np.float32)
    mask = rng.random(negative.shape) < 0.9
    arrays = [jnp.asarray(x) for x in (positive, negative, mask)]
    tensors = [torch.from_numpy(x) for x in (positive, negative, mask)]
    ours = jax.jit(lambda *sets: eci(*sets).score)

    def peer() -> Any:
        positive, negative, mask = tensors
        count = mask.sum(dim=1)
        hardness = (negative.clamp(0, 1) * mask).sum(dim=1) / count.clamp(min=1)
        worst = negative.masked_fill(~mask, -math.inf).amax(dim=1)
        safety = torch.where(count > 0, (positive - worst).clamp(0, 1), torch.zeros(()))
        total = hardness + safety
        efficiency = torch.where(total > 1e-12, 2 * hardness * safety / total, torch.zeros(()))
        return (torch.log1p(count.float()) * efficiency).mean()

    apart = require_same("eci", np.asarray(ours(*arrays)), peer().numpy())
    moved = negative.nbytes + mask.nbytes + positive.nbytes
    extra = {"apart": apart, "roofline_seconds": roofline_seconds(0, moved, peaks)}
    return {"eci_beside_torch": _compared(lambda: ours(*arrays), peer, repeats, extra)}


def _compared(
    ours: Callable[[], Any], peer: Callable[[], Any], repeats: int, extra: dict[str, Any]
) -> dict[str, Any]:
    return {**paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS), **extra}
