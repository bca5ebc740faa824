"""The greedy anonymisers: ANJANA's rows, a plain loop, masks and grids, hopeless tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import fairness

AGES = [[str(age), f"{age // 2}", f"{age // 4}", "*"] for age in range(8)]
PLACES = [[str(place), f"{place // 2}", "*"] for place in range(4)]
MAPS, N_LEVELS = fairness.compose_hierarchy([AGES, PLACES, [["a", "*"], ["b", "*"]]])


def table(seed, n=60):
    rng = np.random.default_rng(seed)
    X = np.stack([rng.integers(0, size, n) for size in (8, 4, 2)], axis=1)
    return X, (rng.random(n) < 0.2 + 0.6 * (X[:, 0] > 3)).astype(int)


@pytest.mark.golden("anonymity_fairness", "greedy_*.npz")
def test_anjana(golden):
    """Every configuration of a table in one call."""
    X, s, maps, n_levels = (golden[name].astype(int) for name in ("X", "s", "maps", "n_levels"))
    k, l, t, supp = golden["conf"].T
    found = fairness.anonymise(X, s, maps, n_levels, k, np.maximum(l, 1), np.where(t < 0, np.inf, t), supp)
    np.testing.assert_array_equal(found.levels, golden["levels"])
    np.testing.assert_array_equal(found.keep, np.unpackbits(golden["keep"], axis=1)[:, : len(X)].astype(bool))
    np.testing.assert_array_equal(found.ok, golden["ok"])
    np.testing.assert_array_equal(found.k, golden["k_out"])
    np.testing.assert_array_equal(found.l, golden["l_out"])
    np.testing.assert_allclose(found.t, golden["t_out"], rtol=1e-5, atol=1e-6)


def plain_loop(X, s, k, l, t, supp):
    """The specification, step by step."""
    q = X.shape[1]

    def look(levels, rows):
        G = np.stack([MAPS[j, levels[j], X[rows, j]] for j in range(q)], axis=1)
        _, gid, count = np.unique(G, axis=0, return_inverse=True, return_counts=True)
        return G, gid.ravel(), count

    def coarser(levels, alive, G):
        different = [len(np.unique(G[:, j])) if alive[j] else -1 for j in range(q)]
        j = int(np.argmax(different))
        if levels[j] == N_LEVELS[j] - 1:
            alive[j] = False
        else:
            levels[j] += 1

    levels, alive, rows = [0] * q, [True] * q, np.arange(len(X))
    while True:
        G, gid, count = look(levels, rows)
        if count.min() >= k:
            break
        if k <= count.max() and 100 * count[count < k].sum() / len(X) <= supp:
            rows = rows[count[gid] >= k]
            break
        if not any(alive):
            return levels, rows[:0]
        coarser(levels, alive, G)
    alive = [True] * q
    while True:
        G, gid, count = look(levels, rows)
        H = np.stack([np.bincount(gid[s[rows] == v], minlength=len(count)) for v in (0, 1)], axis=1)
        distance = np.abs(H[:, 1] / count - np.mean(s[rows])).max() if len(set(s[rows])) > 1 else 0
        if (H > 0).sum(axis=1).min() >= l and distance <= t:
            return levels, rows
        if not any(alive):
            return levels, rows[:0]
        coarser(levels, alive, G)


CONFIGS = [
    (k, l, t, supp)
    for k in (1, 2, 5, 20, 61)
    for l, t in ((1, np.inf), (2, np.inf), (1, 0.15), (2, 0.05))
    for supp in (0.0, 10.0, 40.0)
]


@pytest.mark.parametrize("seed", range(3))
def test_a_plain_loop(seed):
    X, s = table(seed)
    found = fairness.anonymise(X, s, MAPS, N_LEVELS, *np.array(CONFIGS).T)
    for c, config in enumerate(CONFIGS):
        levels, rows = plain_loop(X, s, *config)
        assert found.levels[c].tolist() == levels, config
        assert np.flatnonzero(found.keep[c]).tolist() == rows.tolist(), config
        assert bool(found.ok[c]) == bool(len(rows))


def test_reported_levels_are_those_of_the_released_table():
    X, s = table(4)
    found = fairness.anonymise(X, s, MAPS, N_LEVELS, *np.array(CONFIGS).T)
    for c in np.flatnonzero(found.ok)[::7]:
        keep = np.asarray(found.keep[c])
        G = np.asarray(fairness.generalise(X, MAPS, found.levels[c]))
        gid, _ = fairness.equivalence_classes(G, G.max(axis=0) + 1)
        levels = fairness.privacy_levels(gid, s, 2, keep)
        assert (int(found.k[c]), int(found.l[c])) == (int(levels.k), int(levels.l))
        assert float(found.t[c]) == pytest.approx(float(levels.t_ordered), abs=1e-6)
        assert found.k[c] >= CONFIGS[c][0]
        assert found.l[c] >= CONFIGS[c][1]
        assert found.t[c] <= CONFIGS[c][2]


def test_rows_of_weight_0_do_not_exist():
    X, s = table(5)
    rows = np.random.default_rng(0).random(len(X)) < 0.7
    found = fairness.anonymise(X, s, MAPS, N_LEVELS, *np.array(CONFIGS).T, rows)
    for c in range(0, len(CONFIGS), 5):
        levels, kept = plain_loop(X[rows], s[rows], *CONFIGS[c])
        assert found.levels[c].tolist() == levels
        assert np.flatnonzero(found.keep[c]).tolist() == np.flatnonzero(rows)[kept].tolist()


def test_each_kind_has_a_function():
    X, s = table(4)
    table_and_maps = X, s, MAPS, N_LEVELS
    found = fairness.anonymise(*table_and_maps, *np.array(CONFIGS).T)
    for alone, config in (
        (fairness.k_anonymise(*table_and_maps, 5, 10.0), (5, 1, np.inf, 10.0)),
        (fairness.l_diversify(*table_and_maps, 5, 2, 10.0), (5, 2, np.inf, 10.0)),
        (fairness.t_close(*table_and_maps, 5, 0.15, 10.0), (5, 1, 0.15, 10.0)),
    ):
        for name, value in alone._asdict().items():
            np.testing.assert_array_equal(value, getattr(found, name)[CONFIGS.index(config)], err_msg=name)


@pytest.mark.slow
def test_jit_and_vmap_over_settings_masks_and_tables():
    X, s = table(6)
    tables = jnp.stack([jnp.asarray(X), jnp.asarray(X[::-1].copy())])
    sensitive = jnp.stack([jnp.asarray(s), jnp.asarray(s[::-1].copy())])
    k = jnp.array([2, 9])

    def of(X, s, k):
        return fairness.t_close(X, s, MAPS, N_LEVELS, k, 0.2, 20.0, num_values=2)

    together = jax.jit(jax.vmap(of))(tables, sensitive, k)
    for i in range(2):
        alone = of(tables[i], sensitive[i], k[i])
        for name, value in alone._asdict().items():
            np.testing.assert_allclose(getattr(together, name)[i], value, rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_traced_hierarchies_and_vmap_over_masks():
    X, s = table(6)
    masks = np.random.default_rng(1).random((2, len(X))) < 0.5
    together = jax.jit(
        jax.vmap(
            lambda w, maps: fairness.k_anonymise(X, s, maps, N_LEVELS, 3, 20.0, w, num_values=2), (0, None)
        )
    )(masks, MAPS)
    for i in range(2):
        alone = fairness.k_anonymise(X, s, MAPS, N_LEVELS, 3, 20.0, masks[i])
        np.testing.assert_array_equal(together.keep[i], alone.keep)
        assert not bool((together.keep[i] & ~masks[i]).any())


# Tables that cannot be, or hardly, anonymised


def test_a_column_unique_in_every_row():
    """It is generalised until it says nothing, and then the rest of the table is as good as without it."""
    n = 30
    unique = [[str(i), "*"] for i in range(n)]
    maps, n_levels = fairness.compose_hierarchy([unique, [["a", "*"], ["b", "*"]]])
    X, s = np.stack([np.arange(n), np.arange(n) % 2], axis=1), np.arange(n) % 2
    found = fairness.k_anonymise(X, s, maps, n_levels, 2, 20.0)
    assert found.levels.tolist() == [1, 0]
    assert int(found.k) == n // 2
    assert bool(found.keep.all())


def test_k_larger_than_the_table():
    X, s = table(7)
    for supp in (0.0, 100.0):
        found = fairness.k_anonymise(X, s, MAPS, N_LEVELS, len(X) + 1, supp)
        assert not bool(found.ok)
        assert not bool(found.keep.any())
        assert found.levels.tolist() == (N_LEVELS - 1).tolist()
        assert (int(found.k), int(found.l)) == (0, 0)
        assert np.isnan(found.t)
    assert bool(fairness.k_anonymise(X, s, MAPS, N_LEVELS, len(X), 0.0).ok)


def test_a_sensitive_column_with_one_value():
    """It is never 2-diverse; every class is as near the table as can be."""
    X, s = table(8)[0], np.zeros(60, int)
    assert not bool(fairness.l_diversify(X, s, MAPS, N_LEVELS, 2, 2, 20.0).ok)
    close = fairness.t_close(X, s, MAPS, N_LEVELS, 2, 0.0, 20.0)
    assert bool(close.ok)
    assert float(close.t) == 0
    assert close.levels.tolist() == fairness.k_anonymise(X, s, MAPS, N_LEVELS, 2, 20.0).levels.tolist()


def test_no_row():
    X, s = table(9)
    found = fairness.k_anonymise(X, s, MAPS, N_LEVELS, 1, 20.0, np.zeros(len(X)))
    assert not bool(found.ok)
    assert not bool(found.keep.any())


def test_what_is_refused():
    X, s = table(10)
    for arguments, error, message in (
        ((X, s, MAPS, N_LEVELS, 0, 20.0), ValueError, "k: expected numbers from 1 to inf, got 0"),
        ((X, s, MAPS, N_LEVELS, 2, 101.0), ValueError, "supp: expected numbers from 0 to 100, got 101.0"),
        (
            (X, s[:-1], MAPS, N_LEVELS, 2, 20.0),
            ValueError,
            "s: expected one value for each of 60 rows, got 59",
        ),
        ((X, s, MAPS, N_LEVELS[:2], 2, 20.0), ValueError, "maps, n_levels: expected those of the 3 columns"),
        ((X, s, MAPS, N_LEVELS + 1, 2, 20.0), ValueError, "n_levels: expected codes from 0 to 3, got 4"),
        ((X * 1.0, s, MAPS, N_LEVELS, 2, 20.0), TypeError, "X: expected integer codes, got float"),
        ((np.where(X > 6, -1, X), s, MAPS, N_LEVELS, 2, 20.0), ValueError, "code -1 has no label in maps"),
        ((X, s, MAPS, N_LEVELS, np.array([2, 3]), np.ones(3)), ValueError, r"[Ii]ncompatible shapes"),
        (
            (X, s, MAPS, N_LEVELS, np.ones((2, 2)), 20.0),
            ValueError,
            "k, l, t, supp: expected numbers or vectors",
        ),
    ):
        with pytest.raises(error, match=message):
            fairness.k_anonymise(*arguments)
    with pytest.raises(ValueError, match=r"t: expected numbers from 0 to inf, got -0\.1"):
        fairness.t_close(X, s, MAPS, N_LEVELS, 2, -0.1, 20.0)
    with pytest.raises(ValueError, match="num_values: expected the number of values of s"):
        jax.jit(lambda s: fairness.k_anonymise(X, s, MAPS, N_LEVELS, 2, 20.0))(s)
