"""Feasibility: mixtures found again, one basis, grids over meshes; bases, selection, baselines' scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxneg.graphs import (
    align_graphs,
    estimate_graphon,
    feasibility,
    feasibility_grid,
    graphon_basis,
    graphon_of,
    gw_distance,
    merge_graphs,
    resize_graphon,
    select_pretraining,
    stack_graphs,
    synthesize_graphon,
    topological_selection,
    topology_clusters,
    w2pgnn_feasibility,
)

R, FIT = 4, {"steps": 20, "lr": 0.2}


@pytest.fixture(scope="module")
def bases():
    return np.stack([synthesize_graphon(kind, R) for kind in (0, 9)])


@pytest.fixture(scope="module")
def grid(bases):
    """Pairs of the bases and of targets on the way from one to the other."""
    shares = np.linspace(0, 1, 11, dtype="f4")
    targets = np.einsum("bk,kij->bij", np.stack([shares, 1 - shares], 1), bases)
    pairs = np.broadcast_to(bases, (11, 2, R, R))
    return pairs, targets, feasibility_grid(pairs, targets, **FIT)


def sampled(kind, graphs, nodes, seed):
    rng = np.random.default_rng(seed)
    p = np.asarray(synthesize_graphon(kind, nodes))
    upper = np.triu(rng.uniform(size=(graphs, nodes, nodes)) < p, 1).astype("f4")
    return stack_graphs(list(upper + upper.transpose(0, 2, 1)))


@pytest.fixture(scope="module")
def domains():
    return [sampled(0, 12, 12, 0), sampled(10, 12, 12, 1)]


def test_mixtures_are_found_again(bases, grid):
    _, targets, found = grid
    assert found.trace.shape == (11, FIT["steps"])
    assert np.all(found.zeta <= 0)
    np.testing.assert_allclose(found.alpha.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(found.alpha[3:8, 0], np.linspace(0, 1, 11)[3:8], atol=0.06)
    assert np.all(found.zeta[3:8] > -0.02)
    # The best iterate is the trace's least, the first has equal weights.
    np.testing.assert_allclose(found.zeta, -np.sqrt(found.trace.min(1)), rtol=1e-6)
    np.testing.assert_allclose(found.zeta_uniform, -np.sqrt(found.trace[:, 0]), rtol=1e-6)
    for i in (0, 4):
        for k in (0, 1):
            alone = gw_distance(bases[k], targets[i]).value
            np.testing.assert_allclose(found.zeta_vertices[i, k] ** 2, alone, atol=1e-6)


def test_one_by_one(grid):
    pairs, targets, found = grid
    one = feasibility(pairs[2], targets[2], **FIT)
    for part, of_grid in zip(one, found, strict=True):
        np.testing.assert_allclose(part, of_grid[2], atol=2e-5)


@pytest.mark.parametrize(
    "axis_type", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit]
)
def test_grids_do_not_depend_on_the_mesh(grid, axis_type):
    pairs, targets, whole = grid
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    split = feasibility_grid(pairs, targets, mesh=mesh, **FIT)
    assert len(split.zeta) == 11
    for part, of_one in zip(split, whole, strict=True):
        np.testing.assert_allclose(part, of_one, atol=2e-5)
    even = feasibility_grid(
        *(jax.device_put(x[:8], jax.NamedSharding(mesh, P("data"))) for x in (pairs, targets)),
        mesh=mesh,
        **FIT,
    )
    assert even.zeta.sharding.spec == P("data")
    np.testing.assert_allclose(even.zeta, whole.zeta[:8], atol=2e-5)


def test_one_graphon_needs_no_steps(bases):
    found = feasibility(bases[:1], bases[1], **FIT)
    assert found.alpha.tolist() == [1.0]
    assert found.zeta == found.zeta_uniform == found.zeta_vertices[0] < 0
    assert found.trace.shape == (FIT["steps"],)


def test_what_is_not_finite_stays_visible(bases):
    assert np.isnan(feasibility(bases[:1], np.full((R, R), np.nan), **FIT).zeta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": np.ones((3, 3))}, r"bases: expected graphons of shape \(3, 3\) as the target"),
        ({"bases": np.ones((R, R))}, r"bases: expected \[batch, n, n\]"),
        ({"steps": 0}, "steps: expected at least 1"),
        ({"lr": 0.0}, "lr: expected a positive number"),
    ],
)
def test_bad_feasibility(bases, change, message):
    with pytest.raises(ValueError, match=message):
        feasibility(**({"bases": bases, "target": bases[0]} | change))


def test_bad_grids(bases):
    with pytest.raises(ValueError, match="targets: expected one for each of 1 bases, got 2"):
        feasibility_grid(bases[None], bases)
    mesh = jax.make_mesh((8,), ("data",))
    with pytest.raises(ValueError, match="axis_name: expected one of data, got 'model'"):
        feasibility_grid(bases[None], bases[:1], mesh=mesh, axis_name="model")


def test_bases(domains):
    merged = merge_graphs(domains)
    integr = graphon_basis(domains, "integr", resolution=R)
    expected = estimate_graphon(align_graphs(*merged)[0], merged.n_nodes, resolution=R)
    np.testing.assert_allclose(integr, expected[None], atol=1e-6)
    by_domain = graphon_basis(domains, "domain", resolution=R)
    np.testing.assert_allclose(by_domain, [graphon_of(domain, R) for domain in domains], atol=1e-6)
    np.testing.assert_allclose(by_domain.mean(0), integr[0], atol=0.02)  # twelve graphs each
    labels = topology_clusters(merged, 2)
    assert len(set(labels[:12])) == len(set(labels[12:])) == 1
    assert labels[0] != labels[12]
    topo = graphon_basis(domains, "topo", resolution=R, clusters=2)
    order = [0, 1] if labels[0] == 0 else [1, 0]
    np.testing.assert_allclose(topo, by_domain[jnp.array(order)], atol=1e-6)


def test_clusters_of_few_and_empty_graphs():
    square = np.roll(np.eye(4), 1, 0) + np.roll(np.eye(4), -1, 0)
    graphs = stack_graphs([square, square, 1 - np.eye(5), np.zeros((3, 3))])
    labels = topology_clusters(graphs, 5)
    assert labels.tolist() in ([0, 0, 1, -1], [1, 1, 0, -1])
    raw = topology_clusters(graphs, 5, standardize=False)
    assert raw[3] == -1
    with pytest.raises(ValueError, match="graphs: expected at least one with edges, got none"):
        topology_clusters(stack_graphs([np.zeros((3, 3))]))


def test_w2pgnn_feasibility(domains):
    settings = {"resolution": R, **FIT, "clusters": 2}
    found = w2pgnn_feasibility(domains, sampled(0, 12, 12, 2), **settings)
    assert set(found.by_variant) == {"integr", "domain", "topo"}
    assert found.zeta == max(result.zeta for result in found.by_variant.values())
    assert found.variant in {"domain", "topo"}
    assert found.by_variant["domain"].alpha[0] > 0.8
    # Arrays in pairs, and a graphon for a target.
    graphon = graphon_of(sampled(0, 12, 12, 2), R)
    same = w2pgnn_feasibility([tuple(domain) for domain in domains], graphon, ("domain",), **settings)
    np.testing.assert_allclose(same.zeta, found.by_variant["domain"].zeta, atol=1e-5)


def test_topological_selection(domains):
    target = resize_graphon(synthesize_graphon(0, 12), R)
    found = topological_selection(domains, target, resolution=R, **FIT, clusters=2, rounds=1)
    assert found.domain == 0
    assert 0 < len(found.graphs) < 12
    assert found.rounds == [len(found.graphs)]
    assert topological_selection(domains, target, resolution=R, **FIT, rounds=0).graphs.tolist() == list(
        range(12)
    )


def test_selection():
    zetas = [-0.5, -0.2, -0.3, -0.2, -0.4, -0.6]
    assert select_pretraining(zetas, 2) == (0, 2)
    assert select_pretraining(jnp.array(zetas), 1) == (1,)
    assert select_pretraining({(0,): -1.0, (0, 1): -3.0, (1, 2): -2.0}, 2) == (1, 2)
    for zetas, n, message in (
        ([-1.0, -2.0], 2, r"zetas: expected one for each choice of 2 domains, got shape \(2,\)"),
        ({(0,): -1.0}, 2, "zetas: expected choices of 2 domains, got none"),
        ({(0,): float("nan")}, 1, r"zetas: expected numbers, got NaN for domains \(0,\)"),
        ([], 0, "n: expected at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            select_pretraining(zetas, n)


def test_bad_collections(domains):
    with pytest.raises(ValueError, match="domains: expected at least one collection"):
        w2pgnn_feasibility([], domains[0])
    with pytest.raises(ValueError, match="variants: expected one of integr, domain, topo, got 'size'"):
        w2pgnn_feasibility(domains, domains[0], ("size",))
    with pytest.raises(ValueError, match="variants: expected some of"):
        w2pgnn_feasibility(domains, domains[0], ())
    with pytest.raises(ValueError, match="graphs: expected adjacencies"):
        graphon_of((np.ones((2, 2)), np.array([2])), R)
    with pytest.raises(ValueError, match="graphs: expected at least one graph, got none"):
        graphon_of((np.ones((1, 2, 2)), np.array([0])), R)
