"""GIN and its read-out beside brute force over neighbours, padding, permutations, bfloat16, devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.nn import bridge_normalised, gin, gin_encoder, mean_statistics
from jaxneg.nn.batch_norm import BatchNorm

SIZES = (5, 3, 4, 1)
NODES, FEATURES = 5, 3


@pytest.fixture(scope="module")
def graphs():
    """Graphs of several sizes (one without edges), padded; features of padding are not 0."""
    rng = np.random.default_rng(0)
    adj = np.zeros((4, NODES, NODES), np.float32)
    for graph, n in enumerate(SIZES):
        upper = np.triu(rng.random((n, n)) < 0.6, 1)
        adj[graph, :n, :n] = upper + upper.T
    adj[2] = 0
    mask = np.arange(NODES) < np.array(SIZES)[:, None]
    x = rng.standard_normal((4, NODES, FEATURES)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(adj), jnp.asarray(mask)


def linear(layer, x):
    return x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])


def standardised(rows, norm):
    """Batch normalisation of the nodes of all graphs together."""
    every = np.concatenate(rows)
    scale = np.asarray(norm["scale"]) / np.sqrt(every.var(0) + 1e-5)
    return [(r - every.mean(0)) * scale + np.asarray(norm["bias"]) for r in rows]


def by_hand(params, x, adj, aggregation, norm):
    """Node features after each layer, graph by graph, with sums over lists of neighbours."""
    h = [np.asarray(x[g, :n], np.float64) for g, n in enumerate(SIZES)]
    layers = []
    for number in range(len(params["layers"])):
        layer = params["layers"][str(number)]
        heard = []
        for g, n in enumerate(SIZES):
            rows = []
            for i in range(n):
                neighbours = [j for j in range(n) if adj[g, i, j]]
                total = sum((h[g][j] for j in neighbours), np.zeros(h[g].shape[1]))
                power = {"sum": 0, "mean": 1, "sqrt": 0.5}[aggregation]
                rows.append(h[g][i] + total / max(len(neighbours), 1) ** power)
            heard.append(linear(layer["first"], np.stack(rows)))
        if not norm:
            h = [np.maximum(linear(layer["second"], np.maximum(r, 0)), 0) for r in heard]
        else:
            h = [np.maximum(r, 0) for r in standardised(heard, layer["norms"]["0"])]
            h = [linear(layer["second"], r) for r in h]
            for name in ("1", "2"):
                h = [np.maximum(r, 0) for r in standardised(h, layer["norms"][name])]
        layers.append(h)
    return layers


@pytest.mark.parametrize(("aggregation", "norm"), [("sum", True), ("mean", False), ("sqrt", False)])
def test_layers_are_sums_over_neighbours(graphs, aggregation, norm):
    x, adj, mask = graphs
    model = gin(FEATURES, layers=2, width=4, aggregation=aggregation, norm=norm)
    params = model.init(jax.random.key(0))
    found = jax.jit(model.apply)(params, x, adj, mask)
    for ours, expected in zip(found, by_hand(params, x, adj, aggregation, norm), strict=True):
        for g, n in enumerate(SIZES):
            np.testing.assert_allclose(ours[g, :n], expected[g], rtol=1e-4, atol=1e-5)
            assert not np.any(ours[g, n:])


@pytest.mark.parametrize(("readout", "ego"), [("sum", False), ("mean", True)])
def test_readout_by_hand(graphs, readout, ego):
    x, adj, mask = graphs
    model = gin_encoder(
        FEATURES, layers=2, width=4, outputs=3, readout=readout, ego=ego, norm=False, aggregation="sqrt"
    )
    params = model.init(jax.random.key(1))
    found = jax.jit(model.apply)(params, x, adj, mask)
    hidden = [[np.asarray(x[g, :n], np.float64) for g, n in enumerate(SIZES)]]
    hidden += by_hand(params["gin"], x, adj, "sqrt", False)
    for g in range(len(SIZES)):
        total = 0
        for number, h in enumerate(hidden):
            pooled = h[g].sum(0) if readout == "sum" else h[g].mean(0)
            pooled = np.concatenate([pooled, h[g][0]]) if ego else pooled
            total = total + linear(params["readouts"][str(number)], pooled)
        np.testing.assert_allclose(found[g], total / np.linalg.norm(total), rtol=1e-4, atol=1e-5)


def test_order_padding_and_an_empty_graph(graphs):
    """The embedding knows neither the order of the nodes nor the padding; without nodes it is finite."""
    x, adj, mask = graphs
    model = gin_encoder(FEATURES, layers=2, width=4, outputs=3, norm=False)
    params = model.init(jax.random.key(2))
    apply = jax.jit(model.apply)
    found = apply(params, x, adj, mask)
    order = np.random.default_rng(1).permutation(NODES)
    permuted = apply(params, x[:, order], adj[:, order][:, :, order], mask[:, order])
    np.testing.assert_allclose(permuted, found, rtol=1e-4, atol=1e-5)
    other = jnp.where(mask[..., None], x, 7.0)
    np.testing.assert_allclose(apply(params, other, adj, mask), found, atol=1e-6)
    nobody = apply(params, x, jnp.zeros_like(adj), jnp.zeros_like(mask))
    assert np.isfinite(nobody).all()
    gradient = jax.grad(lambda p: apply(p, x, jnp.zeros_like(adj), jnp.zeros_like(mask)).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_normalisation_counts_real_nodes_only(graphs):
    x, _, mask = graphs
    model = bridge_normalised(lambda rngs: BatchNorm(FEATURES))
    params = model.init(jax.random.key(0))
    real = jnp.concatenate([x[g, :n] for g, n in enumerate(SIZES)])
    expected, found = model.statistics(params, real), model.statistics(params, x, mask)
    for name in ("mean", "variance"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(model.apply(params, x, mask)[0], model.apply(params, real)[:5], rtol=1e-4)


def test_evaluation_reads_each_graph_alone(graphs):
    x, adj, mask = graphs
    model = gin_encoder(FEATURES, layers=1, width=4, outputs=3, dropout=0.5)
    params = jax.jit(model.init)(jax.random.key(3))
    stats = mean_statistics([jax.jit(model.statistics)(params, x, adj, mask)])
    evaluate, apply = jax.jit(model.evaluate), jax.jit(model.apply)
    whole = evaluate(params, stats, x, adj, mask)
    np.testing.assert_allclose(whole, apply(params, x, adj, mask), rtol=1e-4, atol=1e-5)
    alone = evaluate(params, stats, x[1], adj[1], mask[1])
    np.testing.assert_allclose(alone, whole[1], rtol=1e-4, atol=1e-5)
    dropped = apply(params, x, adj, mask, dropout_key=jax.random.key(0))
    assert np.abs(dropped - whole).max() > 1e-3


def test_bfloat16(graphs):
    x, adj, mask = graphs
    exact, short = (
        gin_encoder(FEATURES, layers=1, width=8, outputs=3, dtype=t) for t in (None, jnp.bfloat16)
    )
    params = jax.jit(exact.init)(jax.random.key(0))
    found = jax.jit(short.apply)(params, x, adj, mask)
    assert found.dtype == jnp.float32
    cosine = jnp.sum(found * jax.jit(exact.apply)(params, x, adj, mask), -1)
    assert cosine.min() > 0.98


def test_sharded(graphs):
    """Batch normalisation over the graphs of all devices, with auto and with explicit axes."""
    x, adj, mask = (jnp.concatenate([part, part]) for part in graphs)
    model = gin_encoder(FEATURES, layers=1, width=4, outputs=3)
    params = jax.jit(model.init)(jax.random.key(0))

    def loss(params, x, adj, mask):
        return jnp.sum(model.apply(params, x, adj, mask)[..., 0])

    expected = jax.jit(jax.value_and_grad(loss))(params, x, adj, mask)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            placed = [jax.device_put(part, NamedSharding(mesh, P("data"))) for part in (x, adj, mask)]
            everywhere = jax.device_put(params, NamedSharding(mesh, P()))
            found = jax.jit(jax.value_and_grad(loss))(everywhere, *placed)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gin(0), "features: expected at least 1, got 0"),
        (lambda: gin(3, layers=0), "layers: expected at least 1, got 0"),
        (lambda: gin(3, aggregation="max"), "aggregation: expected one of sum, mean, sqrt, got 'max'"),
        (lambda: gin_encoder(3, readout="max"), "readout: expected one of sum, mean, got 'max'"),
        (lambda: gin_encoder(3, dropout=1.0), "dropout: expected at least 0 and less than 1, got 1.0"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_shapes(graphs):
    x, adj, mask = graphs
    model = gin(FEATURES, layers=1, width=2)
    params = model.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"x: expected \[..., nodes, 3\], got shape"):
        model.apply(params, x[..., :2], adj)
    with pytest.raises(ValueError, match=r"adj: expected \(4, 5, 5\)"):
        model.apply(params, x, adj[:, :4])
    with pytest.raises(ValueError, match=r"mask: expected \(4, 5\), got \(3, 5\)"):
        model.apply(params, x, adj, mask[:3])
