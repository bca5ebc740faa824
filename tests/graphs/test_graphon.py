"""Graphon estimators: known graphons, limits, padding, meshes, types, bad input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxneg.graphs import (
    align_graphs,
    block_means,
    estimate_graphon,
    graphon_at,
    mean_adjacency,
    resize_graphon,
    synthesize_graphon,
    tv_chambolle,
)
from jaxneg.graphs.graphon import METHODS

GRAPHS, NODES = 30, 32


def sampled(w, seed=0, nodes=NODES, graphs=GRAPHS):
    """Graphs whose nodes lie evenly on [0, 1], in random order."""
    rng = np.random.default_rng(seed)
    u = (np.arange(nodes) + 0.5) / nodes
    p = np.asarray(w(u[:, None], u[None]), float)
    adj = np.triu(rng.uniform(size=(graphs, nodes, nodes)) < p, 1).astype("f4")
    order = rng.permutation(nodes)
    return (adj + adj.transpose(0, 2, 1))[:, order][:, :, order], p


def estimated(method, adj, n_nodes=None, **settings):
    aligned, _ = align_graphs(adj, n_nodes)
    options = {"tv_weight": 0.05} if method == "sas" else {"threshold": 0.2} if method == "usvt" else {}
    return np.asarray(estimate_graphon(aligned, n_nodes, method, resolution=NODES, **options, **settings))


@pytest.mark.parametrize("method", METHODS)
def test_known_graphons(method):
    def halves(u, v):
        return np.where((u < 0.5) & (v < 0.5), 0.8, np.where((u < 0.5) != (v < 0.5), 0.4, 0.1))

    settings = {"k": 2} if method == "lg" else {"k": 6} if method.endswith("gwb") else {}
    smooth = functools.partial(graphon_at, 3)
    for w in (halves,) if method == "lg" else (halves, smooth):  # smooth degrees have no gaps
        adj, p = sampled(w)
        estimate = estimated(method, adj, **settings)
        assert np.all((estimate >= 0) & (estimate <= 1))
        # The density alone misses by the graphon's own deviation.
        error = np.sqrt(np.mean((estimate - p) ** 2))
        assert error < 0.65 * p.std(), (method, error, p.std())


def test_blocks_are_found_exactly():
    blocks = np.kron(np.array([[0.8, 0.3], [0.3, 0.1]]), np.ones((8, 8))).astype("f4")
    for method, settings in (("lg", {"k": 2}), ("sba", {"threshold": 0.05})):
        estimate = estimate_graphon(np.stack([blocks, blocks]), None, method, **settings)
        np.testing.assert_allclose(estimate, blocks, atol=1e-6, err_msg=method)


def test_stochastic_blocks_against_a_loop():
    rng = np.random.default_rng(0)
    a = np.triu(rng.uniform(size=(5, 9, 9)) < 0.5, 1).astype(float)
    a[:, 7:] = 0  # a directed part too
    nodes, half, threshold = 9, 2, 0.15
    s1, s2 = a[:half].sum(0), a[half:].sum(0)
    weight = 1 / ((half + 1) * (nodes - half))
    blocks = [[0]]
    for i in range(1, nodes):
        distances = []
        for block in blocks:
            rest = [x for x in range(nodes) if x not in (i, block[0])]
            terms = [
                weight * np.sum((x[i, rest] - x[block[0], rest]) * (y[i, rest] - y[block[0], rest]))
                for x, y in ((s1, s2), (s1.T, s2.T))
            ]
            distances.append(np.sqrt(0.5 * np.abs(terms).sum() / (nodes - 2)))
        if min(distances) < threshold:
            blocks[int(np.argmin(distances))].append(i)
        else:
            blocks.append([i])
    assert 1 < len(blocks) < nodes
    expected = np.zeros((nodes, nodes))
    for rows in blocks:
        for columns in blocks:
            expected[np.ix_(rows, columns)] = a.mean(0)[np.ix_(rows, columns)].mean()
    found = estimate_graphon(np.concatenate([a, a[:1]]), [nodes] * 5 + [0], "sba", threshold=threshold)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_key_changes_the_order_of_visits_only():
    adj, _ = sampled(functools.partial(graphon_at, 3), graphs=4, nodes=12)
    plain, first, again = (
        np.asarray(estimate_graphon(adj, None, "sba", threshold=0.15, key=key))
        for key in (None, jax.random.key(1), jax.random.key(1))
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first.mean(), plain.mean(), atol=1e-5)


def test_padding_leaks_the_size_and_resizing_does_not():
    w = functools.partial(graphon_at, 10)  # equal degrees but for the ends
    small, large = sampled(w, nodes=16)[0], sampled(w, nodes=32)[0]
    adj = np.concatenate([np.pad(small, ((0, 0), (0, 16), (0, 16))), large])
    counts = np.repeat([16, 32], GRAPHS)
    corner = {
        pad: np.asarray(mean_adjacency(align_graphs(adj, counts, pad=pad)[0]))[24:, 24:].mean()
        for pad in ("zero", "resize")
    }
    alone = np.asarray(mean_adjacency(align_graphs(large)[0]))[24:, 24:].mean()
    assert corner["zero"] < 0.6 * alone
    np.testing.assert_allclose(corner["resize"], alone, atol=0.1)
    aligned = align_graphs(adj[:1], counts[:1], pad="resize")[0][0]
    cut = align_graphs(small[:1])[0][0]
    np.testing.assert_allclose(aligned, resize_graphon(cut, 32), atol=1e-5)


def test_graphs_of_no_nodes_do_not_count():
    adj, _ = sampled(functools.partial(graphon_at, 3))
    half = GRAPHS // 2
    twice = np.concatenate([adj[:half], adj[:half]])
    padded, counts = np.concatenate([adj[:half], np.ones_like(adj[:half])]), np.repeat([NODES, 0], half)
    for method in ("sas", "sgwb"):
        few = estimated(method, padded, n_nodes=counts, **({"k": 6} if method == "sgwb" else {}))
        whole = estimated(method, twice, **({"k": 6} if method == "sgwb" else {}))
        # Sums of other lengths round otherwise, and a barycentre's twenty transports carry that on.
        np.testing.assert_allclose(few, whole, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_graphs_without_edges(method):
    settings = {"k": 2} if method == "lg" else {"k": 6} if method.endswith("gwb") else {}
    nothing = estimated(method, np.zeros((GRAPHS, NODES, NODES), "f4"), **settings)
    np.testing.assert_allclose(nothing, 0, atol=1e-5)  # singular vectors in float32


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_graphs_of_a_domain_may_lie_on_many_devices(axis_type):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    adj, _ = sampled(functools.partial(graphon_at, 3), graphs=13, nodes=12)
    adj = np.concatenate([adj, np.zeros((3, 12, 12), "f4")])
    counts = np.repeat([12, 0], [13, 3]).astype("i4")
    for method in ("sas", "fgwb"):
        estimate = functools.partial(estimate_graphon, method=method, outer=3)
        whole = estimate(align_graphs(adj, counts)[0], counts)

        def share(adj, counts, estimate=estimate):
            return estimate(align_graphs(adj, counts)[0], counts, axis_name="data")

        with jax.set_mesh(mesh):
            split = jax.jit(jax.shard_map(share, in_specs=(P("data"), P("data")), out_specs=P()))
            arrays = (jax.device_put(x, jax.NamedSharding(mesh, P("data"))) for x in (adj, counts))
            np.testing.assert_allclose(split(*arrays), whole, atol=2e-6)


def test_total_variation():
    rng = np.random.default_rng(0)
    image = np.kron([[0.2, 0.8], [0.8, 0.2]], np.ones((4, 4))) + 0.05 * rng.normal(size=(8, 8))
    image = image.astype("f4")

    def variation(u):
        return np.abs(np.diff(u, axis=0)).sum() + np.abs(np.diff(u, axis=1)).sum()

    weights = (0.0, 0.02, 0.1, 5.0)
    smooth = [np.asarray(tv_chambolle(image, weight)) for weight in weights]
    np.testing.assert_array_equal(smooth[0], image)
    sizes = [variation(u) for u in smooth]
    assert sorted(sizes, reverse=True) == sizes
    for u in smooth:
        np.testing.assert_allclose(u.mean(), image.mean(), atol=1e-5)
    batch = jax.vmap(tv_chambolle, (None, 0))(image, jnp.asarray(weights))
    np.testing.assert_allclose(batch, smooth, atol=1e-6)
    # The published code's weight leaves little but the density.
    means = np.asarray(synthesize_graphon(5, 8))
    assert np.ptp(means) > 0.3
    assert np.ptp(np.asarray(tv_chambolle(means, 8.0))) < 0.02


def test_jit_vmap_and_bfloat16():
    batch = jnp.stack([sampled(functools.partial(graphon_at, kind))[0] for kind in (3, 0)])
    each = jax.jit(jax.vmap(lambda a: estimate_graphon(align_graphs(a)[0], tv_weight=0.05, resolution=NODES)))
    whole = each(batch)
    np.testing.assert_allclose(whole, [estimated("sas", a) for a in batch], atol=1e-6)
    low = each(batch.astype(jnp.bfloat16))
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, whole, atol=1e-6)  # zeros and ones are exact


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "LP"}, "method: expected one of sas, lg, .*, got 'LP'"),
        ({"h": 0}, "h: expected from 1 to the number of nodes, 4, got 0"),
        ({"method": "lg", "k": 5}, "k: expected from 1 to the number of nodes, 4, got 5"),
        ({"method": "lg", "gap": "rise"}, "gap: expected one of drop, signed"),
        ({"method": "mc", "rank": 9}, "rank: expected from 1 to the number of nodes, 4, got 9"),
        ({"tv_weight": "k"}, "tv_weight: expected one of h, got 'k'"),
        ({"method": "gwb", "beta": 0.0}, "beta: expected a positive number"),
        ({"method": "gwb", "gamma": 2.0}, "gamma: expected from 0 to 1"),
        ({"method": "gwb", "outer": 0}, "outer: expected at least 1"),
        ({"method": "sba", "axis_name": "data"}, "axis_name: expected None with method 'sba'"),
        ({"resolution": 0}, "r: expected at least 1"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        estimate_graphon(np.ones((2, 4, 4)), None, **settings)


def test_bad_arrays():
    with pytest.raises(ValueError, match=r"aligned: expected \[batch, n, n\]"):
        estimate_graphon(np.ones((4, 4)))
    with pytest.raises(ValueError, match="mean_adj: expected"):
        block_means(jnp.ones((2, 3)), 1)
    with pytest.raises(ValueError, match="h: expected from 1 to the number of nodes, 2, got 3"):
        block_means(jnp.ones((2, 2)), 3)
    with pytest.raises(ValueError, match="w: expected a matrix"):
        resize_graphon(jnp.ones(3), 2)
    with pytest.raises(ValueError, match="img: expected"):
        tv_chambolle(jnp.ones(3), 1.0)
    with pytest.raises(ValueError, match="kind: expected from 0 to 12, got 13"):
        graphon_at(13, jnp.zeros(1), jnp.zeros(1))
    with pytest.raises(ValueError, match="r: expected an even resolution for kind 11, got 3"):
        synthesize_graphon(11, 3)
