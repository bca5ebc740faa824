"""The pair predictor beside loops over nodes and pairs; symmetry; mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.nn import node_statistics, pair_predictor

NODES = 6


@pytest.fixture(scope="module")
def graph():
    """One graph with an isolated node, and a few of its pairs."""
    upper = np.triu(np.random.default_rng(0).random((NODES, NODES)) < 0.6, 1)
    adj = (upper + upper.T).astype(np.float32)
    adj[4] = adj[:, 4] = 0
    pairs = np.array([[0, 1], [2, 4], [3, 5], [1, 1]])
    return adj, pairs


def statistics(adj):
    """The eight numbers by loops."""
    n = len(adj)
    d = adj.sum(1) / n
    rows = []
    for i in range(n):
        near = [j for j in range(n) if adj[i, j]]
        back = sum(1 / len(near) * 1 / adj[j].sum() for j in near)
        triangles = sum(adj[i, j] * adj[j, k] * adj[k, i] for j in range(n) for k in range(n))
        mean_near = np.mean([d[j] for j in near]) if near else 0
        rows.append([d[i], d[i] ** 2, mean_near, d.mean(), 5 * back, triangles / n**2, d[i] - d.mean(), 1])
    return np.array(rows)


def test_logits_by_hand(graph):
    adj, pairs = graph
    np.testing.assert_allclose(node_statistics(jnp.asarray(adj)), statistics(adj), rtol=1e-5, atol=1e-6)
    model = pair_predictor(layers=2, width=4, hidden=3)
    params = jax.jit(model.init)(jax.random.key(0))
    found = jax.jit(model.apply)(params, adj[None], pairs[None])[0]
    x, d = statistics(adj), adj.sum(1) / NODES
    walk = adj / np.maximum(adj.sum(1, keepdims=True), 1)
    for number in range(2):
        layer = params["encoder"]["layers"][str(number)]
        h = (x + walk @ x) @ layer["first"]["kernel"] + layer["first"]["bias"]
        h = np.maximum(h, 0) @ layer["second"]["kernel"] + layer["second"]["bias"]
        x = np.maximum(h, 0)
    for (i, j), logit in zip(pairs, found, strict=True):
        c = sum(adj[i, k] * adj[j, k] for k in range(NODES)) / NODES
        u = [*(x[i] + x[j]), *(x[i] * x[j]), 4 * c, c / np.sqrt(d[i] * d[j] + 1e-3), d.mean()]
        hidden = np.maximum(np.array(u) @ params["first"]["kernel"] + params["first"]["bias"], 0)
        expected = hidden @ params["second"]["kernel"] + params["second"]["bias"]
        np.testing.assert_allclose(logit, expected[0], rtol=1e-4, atol=1e-6)


def test_symmetry_and_a_small_start(graph):
    """A pair's order does not matter, nor do the nodes' numbers; logits start near 0."""
    adj, pairs = graph
    model = pair_predictor()
    params = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(model.apply)
    found = apply(params, adj[None], pairs[None])
    np.testing.assert_allclose(apply(params, adj[None], pairs[None, :, ::-1]), found, rtol=1e-5, atol=1e-7)
    order = np.random.default_rng(1).permutation(NODES)
    renamed = np.argsort(order)[pairs]
    np.testing.assert_allclose(apply(params, adj[order][:, order][None], renamed[None]), found, rtol=1e-4)
    assert np.abs(found).max() < 1
    widest = np.std(params["first"]["kernel"]) * np.sqrt(35 / 2)
    assert 0.8 < widest < 1.2
    assert np.std(params["second"]["kernel"]) * np.sqrt(16 / 2) < 0.2


def test_mistakes(graph):
    adj, pairs = graph
    with pytest.raises(ValueError, match="width: expected at least 1, got 0"):
        pair_predictor(width=0)
    model = pair_predictor()
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"adj: expected \[graphs, nodes, nodes\], got \(6, 6\)"):
        model.apply(params, adj, pairs[None])
    with pytest.raises(ValueError, match=r"pairs: expected \[1, pairs, 2\], got \(4, 2\)"):
        model.apply(params, adj[None], pairs)
