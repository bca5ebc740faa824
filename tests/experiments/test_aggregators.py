"""The benchmark of aggregators: what it says without its peers, its residuals, and one round beside them."""

import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import aggregators
from experiments.isolated import available_cores
from jaxneg.mtl import cagrad, fairgrad, gram, imtl_g, mgda, multitask, nash, upgrad


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"measures against torchjd .* pip install 'jaxneg\[bench\]'"):
        aggregators.run()


@pytest.mark.parametrize("method", ["mgda", "cagrad", "imtl_g", "nash", "fairgrad", "upgrad"])
def test_residuals_tell_answers_from_others(method, x64):
    J = np.random.default_rng(0).normal(size=(4, 20))
    J[1] = -0.5 * J[0] + 0.1 * J[1]
    G = J @ J.T
    answers = {
        "mgda": mgda(G),
        "cagrad": cagrad(G, aggregators.CAGRAD_C, rescale=0),
        "imtl_g": imtl_g(G),
        "nash": nash(G),
        "fairgrad": fairgrad(G, aggregators.FAIRGRAD_ALPHA),
        "upgrad": upgrad(G),
    }
    assert aggregators.residuals(method, G, np.asarray(answers[method])) < 1e-7
    other = np.array([0.9, 0.4, 0.5, 0.6]) if method == "cagrad" else np.array([0.7, 0.1, 0.1, 0.1])
    assert aggregators.residuals(method, G, other) > 1e-4


def test_our_aggregations():
    J = jnp.asarray(np.random.default_rng(1).normal(size=(3, 50)), jnp.float32)
    np.testing.assert_allclose(aggregators._Ours("equal", 3, 50)(J), J.sum(0), rtol=1e-5)
    np.testing.assert_allclose(aggregators._Ours("mgda", 3, 50)(J), mgda(gram(J)) @ J, rtol=1e-4, atol=1e-6)
    positive, negative = jnp.maximum(J, 0).sum(0), jnp.minimum(J, 0).sum(0)
    dropped = aggregators._Ours("graddrop", 3, 50)(J)
    assert np.all(np.isclose(dropped, positive) | np.isclose(dropped, negative))


def test_our_aggregation_remembers():
    J = 1e-3 * jnp.asarray(np.random.default_rng(1).normal(size=(2, 50)), jnp.float32)
    ours, link = aggregators._Ours("excess_mtl", 2, 50), multitask("excess_mtl", n_tasks=2, variant="torchjd",
                                                                   step_size=1.0)  # fmt: skip
    state, directions = link.init(jnp.zeros(50)), []
    for _ in range(2):
        expected, state = link.update(J, state)
        directions.append(np.asarray(ours(J)))
        np.testing.assert_allclose(directions[-1], expected, rtol=1e-4, atol=1e-9)
    assert not np.allclose(*directions, rtol=1e-4)


@pytest.mark.slow
def test_one_round_beside_the_peers(monkeypatch):
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("torchjd.aggregation")
    weights = aggregators._weights(torch, peers, 3, 1)
    assert set(weights) == {*aggregators.GRAM_METHODS, "sdmgrad", "modo"}
    # Frank-Wolfe stops early, CAGrad's conic solver at its own tolerance; SDMGrad's steps amplify rounding.
    loose = {"mgda": 0.1, "cagrad": 1e-3, "sdmgrad": 0.01}
    for method, row in weights.items():
        assert method in aggregators.RANDOM or row["apart"] < loose.get(method, 1e-4)
    assert set(aggregators._losses(torch, 3, 1)) == {
        "gls", "imtl_l", "stch", "rlw", "dwa", "uw", "famo"
    }  # fmt: skip
    aggregation = aggregators._aggregation(torch, peers, 3, 2000, 4)
    assert {"graddrop", "excess_mtl", *aggregators.GRAM_METHODS} < set(aggregation)
    for method, row in aggregation.items():
        assert method in aggregators.RANDOM or row["apart"] < loose.get(method, 1e-4)
        assert row["pairs"] == 4
        assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]
    # What takes long is taken once, and has no interval.
    monkeypatch.setattr(aggregators, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(aggregators, "_aggregators", lambda peers, _: {"equal": peers.Sum})
    slow = aggregators._aggregation(torch, peers, 3, 2000, 4)["equal"]
    assert slow["pairs"] == 1
    assert "ratio_low" not in slow


@pytest.mark.slow
def test_memory_beside_the_jacobian():
    pytest.importorskip("torchjd.aggregation")
    parameters = 1_000_000
    measured = aggregators._memory(available_cores(), 2, parameters)
    assert {"equal", "graddrop", "excess_mtl", *aggregators.GRAM_METHODS} <= set(measured)
    for row in measured.values():
        if None in row.values():
            pytest.skip("this system keeps no account of the peak")
        # The direction at least; the methods that are not of the Gram matrix need several Jacobians more.
        assert all(0.8 * 4 * parameters <= grown < 20 * 8 * parameters for grown in row.values())
