"""The benchmark of aggregators: what it says without its peers, its residuals, and one round beside them."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import aggregators
from jaxneg.mtl import cagrad, fairgrad, imtl_g, mgda, nash, upgrad


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


@pytest.mark.slow
def test_one_round_beside_the_peers():
    torch = pytest.importorskip("torch")
    peers = pytest.importorskip("torchjd.aggregation")
    weights = aggregators._weights(torch, peers, 3, 1)
    assert set(weights) == set(aggregators.GRAM_METHODS)
    # Frank-Wolfe stops early, and CAGrad's conic solver at its own tolerance.
    loose = {"mgda": 0.1, "cagrad": 1e-3}
    for method, row in weights.items():
        assert method == "pcgrad" or row["apart"] < loose.get(method, 1e-4)
    assert set(aggregators._losses(torch, 3, 1)) == {"rlw", "dwa", "uw", "famo"}
    aggregation = aggregators._aggregation(torch, peers, 3, 2000, 1)
    assert all(
        row["apart"] < loose.get(m, 1e-4) for m, row in aggregation.items() if m not in ("rlw", "pcgrad")
    )
