"""Individual metrics: the official code's vectors, ties, masks, blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import fairness


@pytest.mark.golden("anonymity_fairness", "individual_metrics*.npz")
def test_official_code(golden, x64):
    for case in sorted({name.partition("_")[0] for name in golden}):
        p1, z, k = golden[f"{case}_p1"], golden[f"{case}_F"], int(golden[f"{case}_kn"])
        p = np.stack([1 - p1, p1], axis=1)
        names = [n.removeprefix(f"{case}_") for n in golden if n.startswith(f"{case}_")]
        found = fairness.individual_metrics(p, z, k, block=64)._asdict()
        if any(name.endswith("_invariant") for name in names):
            for name, value in fairness.individual_metrics(p, z, k, ties="invariant")._asdict().items():
                found[f"{name}_invariant"] = value
        for name in names:
            if name.startswith("aif_consistency"):
                value = fairness.consistency(p1 > 0.5, z, int(name.removeprefix("aif_consistency")))
            elif name in ("F", "p1", "kn"):
                continue
            else:
                value = found[name]
            np.testing.assert_allclose(value, golden[f"{case}_{name}"], rtol=1e-10, err_msg=name)


def brute_force(p, z, k, ties):
    """Row by row, neighbours by distance and index."""
    n = len(z)
    similar, consistent, worst = [], [], 0.0
    q = np.clip(p, 1e-7, 1 - 1e-7)
    for i in range(n):
        d = np.sqrt(np.sum((z - z[i]) ** 2, axis=1))
        others = sorted((j for j in range(n) if j != i), key=lambda j: (d[j], j))
        near, nearer = others[:k], others[: k - 1]
        if ties == "invariant":
            near = [j for j in others if d[j] <= d[near[-1]]]
            nearer = [j for j in others if d[j] <= d[nearer[-1]]]
        differences = np.array([np.abs(p[i] - p[j]).mean() for j in near])
        consistent.append(differences.mean())
        similar.append(np.mean(differences * np.maximum(d[near], 1e-6)))
        for j in nearer:
            if d[j] > 1e-10:
                worst = max(worst, float(np.sum(q[i] * np.log(q[i] / q[j])) / d[j]))
    return np.mean(similar), worst, np.mean(consistent)


P1 = np.random.default_rng(0).random(40) * 0.9 + 0.05
PROBABILITIES = np.stack([1 - P1, P1], axis=1)
CODES = np.random.default_rng(1).integers(0, 3, (40, 3))


@pytest.mark.parametrize("ties", ["index", "invariant"])
def test_ties_masks_and_blocks(ties):
    """Codes that tie; rows of weight 0 are no neighbours and have no say."""
    expected = brute_force(PROBABILITIES, CODES, 7, ties)
    np.testing.assert_allclose(
        fairness.individual_metrics(PROBABILITIES, CODES, 7, block=16, ties=ties), expected, rtol=1e-5
    )
    kept = np.random.default_rng(2).random(40) < 0.6
    masked = fairness.individual_metrics(PROBABILITIES, CODES, 7, block=16, ties=ties, weight=kept)
    np.testing.assert_allclose(masked, brute_force(PROBABILITIES[kept], CODES[kept], 7, ties), rtol=1e-5)


@pytest.mark.slow
def test_invariant_means_invariant():
    order = np.random.default_rng(3).permutation(40)
    one = fairness.individual_metrics(PROBABILITIES, CODES, 7, block=16, ties="invariant")
    other = fairness.individual_metrics(PROBABILITIES[order], CODES[order], 7, block=16, ties="invariant")
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_certain_predictions_and_equal_features_are_finite():
    certain = np.stack([1 - (P1 > 0.5), P1 > 0.5], axis=1).astype(float)
    found = fairness.individual_metrics(certain, CODES, 7, block=16)
    assert np.isfinite(found.ALF)
    assert float(found.ALF) > 1
    same = fairness.individual_metrics(certain, np.zeros((40, 3), int), 7, block=16)
    assert float(same.ALF) == 0  # nobody is at a distance
    assert 0 < float(same.ASF) < 1e-6
    alone = fairness.individual_metrics(certain, CODES, 7, block=16, weight=np.arange(40) == 0)
    assert [float(value) for value in alone] == [0, 0, 0]


def test_consistency_counts_the_row_itself():
    z = np.array([[0.0], [0.0], [0.0], [9.0]])
    yhat = np.array([0, 1, 1, 1])
    # Neighbours with oneself: {0, 1}, {1, 0}, {2, 0}, {3, 0}: apart by 1/2 each.
    assert float(fairness.consistency(yhat, z, 2)) == pytest.approx(0.5)
    assert float(fairness.consistency(yhat, z, 2, weight=np.array([0, 1, 1, 1]))) == 1


def test_aif360_itself():
    """Features without ties, where the library is installed."""
    metrics = pytest.importorskip("aif360.sklearn.metrics")
    z, yhat = np.random.default_rng(8).normal(size=(40, 3)), (P1 > 0.5).astype(int)
    expected = metrics.consistency_score(z, yhat, n_neighbors=5)
    assert float(fairness.consistency(yhat, z, 5)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_jit_grad_and_bfloat16():
    p = jnp.asarray(PROBABILITIES, jnp.bfloat16)
    assert fairness.individual_metrics(p, CODES, 7, block=16).NCF.dtype == jnp.float32
    gradient = jax.jit(jax.grad(lambda p: fairness.individual_metrics(p, CODES, 7, block=16).NCF))(
        PROBABILITIES
    )
    assert bool(jnp.isfinite(gradient).all())
    assert bool(jnp.any(gradient != 0))


def test_what_is_refused():
    for arguments, message in (
        ((PROBABILITIES, CODES, 40), "k: expected from 2 to one less than the 40 rows, got 40"),
        ((PROBABILITIES, CODES, 1), "k: expected from 2"),
        ((P1, CODES, 7), "p, z: expected rows of classes and of features"),
        ((PROBABILITIES, CODES, 7, 16, "first"), "ties: expected one of index, invariant, got 'first'"),
    ):
        with pytest.raises(ValueError, match=message):
            fairness.individual_metrics(*arguments)
    with pytest.raises(ValueError, match="k: expected from 1 to the 40 rows, got 41"):
        fairness.consistency(P1, CODES, 41)
