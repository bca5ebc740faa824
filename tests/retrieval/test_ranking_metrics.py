"""Ranking metrics: goldens, ir_measures on a real run with ties and on graded judgments, masks, edges."""

import functools

import ir_measures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ir_measures import AP, RR, P, R, Success, nDCG
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.collections import TINY, data_folder, read_folder
from jaxneg.retrieval import (
    average_precision,
    bm25_index,
    bm25_scores,
    hit_rate_at_k,
    infonce_loss,
    kendall_tau,
    mrr_at_k,
    ndcg_at_k,
    precision_at_k,
    recall_at_k,
    spearman,
    token_ids,
    tokenize,
    trec_eval_tie_order,
)

METRICS = {
    "ndcg": ndcg_at_k,
    "ndcg_exp": functools.partial(ndcg_at_k, gain="exp"),
    "rr": mrr_at_k,
    "ap": average_precision,
    "recall": recall_at_k,
    "precision": precision_at_k,
    "hit": hit_rate_at_k,
}


@functools.partial(jax.jit, static_argnames=("name", "k"))
def metric(name, scores, rel, k, mask=None, tie_order=None):
    return METRICS[name](scores, rel, k, mask, tie_order=tie_order)


@pytest.mark.golden("cet", "metrics_*.npz")
def test_golden(golden):
    scores, rel, k = golden["scores"], golden["rel"], int(golden["k"])
    cut = {"rr10": ("rr", 10), "rr100": ("rr", 100), "ap": ("ap", None), "recall": ("recall", k)}
    cut |= {"ndcg_linear": ("ndcg", k), "ndcg_exp": ("ndcg_exp", k)}
    assert set(golden) == {*cut, "scores", "rel", "k", "order", "mrr100_official"}
    with jax.enable_x64(True):
        for name, (which, depth) in cut.items():
            np.testing.assert_allclose(
                metric(which, scores, rel, depth), golden[name], atol=1e-12, err_msg=name
            )
        judged = (rel > 0).any(axis=1)
        official = jnp.mean(mrr_at_k(scores, rel, 100), where=judged)
        np.testing.assert_allclose(official, golden["mrr100_official"], atol=1e-12)
        # The ranking itself: the gain of one document at a time gives its rank.
        for row, order in zip(scores, golden["order"], strict=True):
            ranks = 1 / np.asarray(metric("rr", np.tile(row, (row.size, 1)), np.eye(row.size), None))
            np.testing.assert_allclose(ranks[order], 1 + np.arange(row.size))
    low = metric("ndcg", scores.astype(np.float32), rel, k)
    np.testing.assert_allclose(low, golden["ndcg_linear"], atol=1e-5)


def by_ir_measures(measures, qrels, run):
    """``[measures, queries]`` from dictionaries of integer grades and of scores."""
    values = {}
    for result in ir_measures.iter_calc(list(measures), qrels, run):
        values[result.measure, result.query_id] = result.value
    return np.array([[values[measure, query] for query in qrels] for measure in measures])


def test_equal_to_ir_measures_on_a_real_run():
    """BM25 with rounded scores, so that many are tied; what has none of a query's terms is not retrieved."""
    folder = data_folder() / "cranfield"
    judged = read_folder(folder if folder.is_dir() else TINY)
    grades = judged.grades()
    kept = (grades > 0).any(axis=1)
    tokens = tokenize(judged.texts)
    docs, vocabulary = token_ids(tokens)
    queries = token_ids(tokenize(judged.queries), vocabulary).ids[kept]
    scores = np.asarray(bm25_scores(bm25_index(docs, len(vocabulary)), jnp.asarray(queries)))
    scores = np.where(scores > 0, np.round(scores, 0), -np.inf).astype(np.float32)
    grades = grades[kept]
    names = [name for name, yes in zip(judged.query_ids, kept, strict=True) if yes]
    qrels = {
        name: {judged.doc_ids[j]: int(row[j]) for j in np.flatnonzero(row)}
        for name, row in zip(names, grades, strict=True)
    }
    run = {
        name: {judged.doc_ids[j]: float(row[j]) for j in np.flatnonzero(np.isfinite(row))}
        for name, row in zip(names, scores, strict=True)
    }
    assert len(set(next(iter(run.values())).values())) < len(next(iter(run.values()))) / 2
    cases = {
        nDCG @ 10: ("ndcg", 10),
        nDCG: ("ndcg", None),
        RR: ("rr", None),
        AP: ("ap", None),
        AP @ 100: ("ap", 100),
        R @ 100: ("recall", 100),
        P @ 5: ("precision", 5),
        Success @ 1: ("hit", 1),
        Success @ 10: ("hit", 10),
    }
    order = trec_eval_tie_order(judged.doc_ids)
    # ir_measures leaves RR@k to another program than trec_eval, with another order of ties.
    rr = np.asarray(metric("rr", scores, grades, None, None, order))
    np.testing.assert_allclose(metric("rr", scores, grades, 10, None, order), np.where(rr < 0.1, 0, rr))
    for (measure, (name, k)), expected in zip(cases.items(), by_ir_measures(cases, qrels, run), strict=True):
        ours = metric(name, scores, grades, k, None, order)
        np.testing.assert_allclose(ours, expected, atol=2e-6, err_msg=str(measure))


def rankings(seed=0, queries=16, documents=40):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.linspace(-1, 1, documents), (queries, 1)), axis=1).astype(np.float32)
    relevance = rng.integers(0, 4, (queries, documents)) * (rng.random((queries, documents)) < 0.2)
    relevance[1] = 0
    return scores, relevance


def test_graded_judgments_equal_ir_measures():
    scores, rel = rankings()
    rows = [row for row in range(len(rel)) if row != 1]
    qrels = {str(q): {str(d): int(g) for d, g in enumerate(rel[q])} for q in rows}
    run = {str(q): {str(d): float(s) for d, s in enumerate(scores[q])} for q in rows}
    ours = [
        ndcg_at_k(scores, rel, 10),
        average_precision(scores, rel, above=1),
        recall_at_k(scores, rel, 5, above=1),
        precision_at_k(scores, rel, 7, above=2),
    ]
    expected = by_ir_measures([nDCG @ 10, AP(rel=2), R(rel=2) @ 5, P(rel=3) @ 7], qrels, run)
    for mine, theirs in zip(ours, expected, strict=True):
        some = np.isfinite(np.asarray(mine)[rows])  # no document of this grade: we say NaN, trec_eval 0
        np.testing.assert_allclose(np.asarray(mine)[rows][some], theirs[some], atol=1e-6)
        assert np.all(theirs[~some] == 0)


def test_masks_and_edges():
    scores, rel = rankings()
    ends = ((0, 0), (0, 4))
    padded = np.pad(scores, ends, constant_values=9), np.pad(rel, ends, constant_values=3)
    mask = np.pad(np.ones(scores.shape, bool), ends)
    for name in METRICS:
        plain = metric(name, scores, rel, 10)
        np.testing.assert_allclose(metric(name, *padded, 10, mask), plain, atol=1e-6, err_msg=name)
        np.testing.assert_allclose(
            jax.vmap(lambda s, r, name=name: METRICS[name](s, r, 10))(scores, rel), plain, atol=1e-6
        )
        # A query without a relevant document has no nDCG and no average precision.
        assert np.isnan(plain[1]) if name in ("ndcg", "ndcg_exp", "ap") else plain[1] == 0
        # What is not retrieved has no rank, but counts among the relevant.
        lost = metric(name, np.where(rel > 0, -np.inf, scores), rel, None if name != "precision" else 10)
        assert np.all(np.delete(lost, 1) == 0)
    np.testing.assert_allclose(metric("ndcg", rel + 0.0, rel, None)[2:], 1, atol=1e-6)
    low = ndcg_at_k(jnp.arange(5.0, dtype=jnp.bfloat16), jnp.array([1, 0, 0, 0, 0]))
    assert low.dtype == jnp.float32
    assert float(low) == pytest.approx(1 / np.log2(6), rel=1e-5)
    tied = np.zeros(3), np.array([1, 0, 0])
    assert float(mrr_at_k(*tied)) == 1
    assert float(mrr_at_k(*tied, tie_order=np.array([2, 0, 1]))) == pytest.approx(1 / 3)
    gradient = jax.grad(lambda s: ndcg_at_k(s, jnp.asarray(rel[0])))(jnp.asarray(scores[0]))
    assert np.all(gradient == 0)


def test_bad_input():
    scores, rel = rankings()
    for function in METRICS.values():
        with pytest.raises(ValueError, match=r"rel: expected the shape of scores, \(16, 40\)"):
            function(scores, rel[:, :3])
        with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
            function(scores, rel, 0)
        with pytest.raises(TypeError, match="mask: expected a boolean"):
            function(scores, rel, 10, rel)
        with pytest.raises(ValueError, match=r"tie_order: expected shape \(40,\), got \(3,\)"):
            function(scores, rel, tie_order=np.arange(3))
    with pytest.raises(ValueError, match="gain: expected one of exp, linear, got 'log'"):
        ndcg_at_k(scores, rel, gain="log")
    with pytest.raises(ValueError, match="above: expected at least 0, got -1"):
        recall_at_k(scores, rel, above=-1)
    with pytest.raises(ValueError, match="doc_ids: expected each identifier once, got 'a' twice"):
        trec_eval_tie_order(["a", "b", "a"])


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(axis_type):
    scores, rel = rankings()

    @jax.jit
    def everything(s, r):
        metrics = [function(s, r) for function in METRICS.values()]
        return *metrics, infonce_loss(s[:, 0], s[:, 1:]), spearman(s, r), kendall_tau(s, r)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        values = everything(jax.device_put(scores, rows), jax.device_put(rel, rows))
    for a, b in zip(values, everything(scores, rel), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
