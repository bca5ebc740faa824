"""The best transformation: exhaustive search, ties, masks, what cannot be released."""

import itertools

import jax
import numpy as np
import pytest

from jaxneg import fairness

COLUMNS = [
    [[str(v), f"{v // 2}", f"{v // 4}", "*"] for v in range(8)],
    [[str(v), f"{v % 2}", "*"] for v in range(4)],
    [["only", "*"]],
]
MAPS, N_LEVELS = fairness.compose_hierarchy(COLUMNS)
CUT = [[str(v), "low" if v < 3 else "high", f"{v // 2}", "*"] for v in range(6)]


def exhaustive(X, maps, n_levels, k, supp):
    """Every transformation in lexicographic order; strictly better ones replace the best."""
    best = None
    for levels in itertools.product(*(range(count) for count in n_levels)):
        G = np.stack([maps[j, levels[j], X[:, j]] for j in range(X.shape[1])], axis=1)
        _, gid, count = np.unique(G, axis=0, return_inverse=True, return_counts=True)
        keep = count[gid.ravel()] >= k
        if 100 * (~keep).sum() > supp * len(X) or not keep.any():
            continue
        loss = np.ones(X.shape)
        for j in range(X.shape[1]):
            labels = maps[j, levels[j]][maps[j, 0] >= 0]
            sizes = np.array([np.sum(labels == label) for label in maps[j, levels[j]][X[:, j]]])
            loss[keep, j] = (sizes[keep] - 1) / max(len(labels) - 1, 1)
        if best is None or loss.mean() < best[1] - 1e-12:
            best = levels, loss.mean(), keep
    return best


@pytest.mark.golden("anonymity_fairness", "lattice_mondrian*.npz")
def test_exhaustive_search_of_a_real_table(golden):
    X, maps, n_levels = (golden[name].astype(int) for name in ("X", "maps", "n_levels"))
    for case in itertools.takewhile(lambda i: f"o{i}_k" in golden, itertools.count()):
        found = fairness.optimal_lattice(
            X, maps, n_levels, int(golden[f"o{case}_k"]), float(golden[f"o{case}_supp"])
        )
        np.testing.assert_array_equal(found.levels, golden[f"o{case}_levels"])
        np.testing.assert_array_equal(found.keep, golden[f"o{case}_keep"])
        assert found.loss == pytest.approx(float(golden[f"o{case}_loss"]), abs=1e-12)
        assert found.evaluated < np.prod(n_levels)


@pytest.mark.parametrize("nested", [True, False])
def test_an_exhaustive_search(nested):
    """Also where a coarser level has smaller classes, so that nothing may be left out."""
    maps, n_levels = (MAPS, N_LEVELS) if nested else fairness.compose_hierarchy([CUT, *COLUMNS[1:]], "direct")
    assert fairness.is_nested(maps, n_levels) == nested
    rng = np.random.default_rng(nested)
    X = np.stack([rng.integers(0, (maps[j, 0] >= 0).sum(), 40) for j in range(3)], axis=1)
    for k, supp in ((2, 0), (4, 10), (9, 30), (40, 0)):
        levels, loss, keep = exhaustive(X, maps, n_levels, k, supp)
        found = fairness.optimal_lattice(X, maps, n_levels, k, supp, chunk=8)
        assert tuple(found.levels) == levels
        assert found.loss == pytest.approx(loss, abs=1e-12)
        np.testing.assert_array_equal(found.keep, keep)
    rows = rng.random(40) < 0.5
    masked = fairness.optimal_lattice(X, maps, n_levels, 3, 10, rows, chunk=8)
    levels, loss, keep = exhaustive(X[rows], maps, n_levels, 3, 10)
    assert tuple(masked.levels) == levels
    assert masked.loss == pytest.approx(loss, abs=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(masked.keep), np.flatnonzero(rows)[keep])


def test_what_cannot_be_released_and_what_is_refused():
    X = np.zeros((5, 3), int)
    none = fairness.optimal_lattice(X, MAPS, N_LEVELS, 6, 100.0)
    assert not none.ok
    assert np.isnan(none.loss)
    assert not none.keep.any()
    assert none.levels.tolist() == (N_LEVELS - 1).tolist()
    with pytest.raises(
        ValueError, match="k, supp, chunk: expected k and chunk from 1 and supp from 0 to 100"
    ):
        fairness.optimal_lattice(X, MAPS, N_LEVELS, 0)
    with pytest.raises(TypeError, match="optimal_lattice runs on the host"):
        jax.jit(lambda X: fairness.optimal_lattice(X, MAPS, N_LEVELS, 2))(X)
