"""Classes and privacy levels: pycanon's vectors, brute force, masks; transport distances."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneg import fairness
from jaxneg.fairness.equivalence_classes import class_sizes

NAMES = {
    "k": "k",
    "l": "l",
    "t_ordered": "t_ordered",
    "t_equal": "t_equal",
    "entropy_l_exact": "entropy_l",
    "alpha": "alpha",
    "beta_basic": "beta",
    "beta_enhanced": "beta_enhanced",
    "delta": "delta",
    "c_recursive_pycanon": "c_recursive",
}


@pytest.mark.golden("anonymity_fairness", "privacy_levels*.npz")
@pytest.mark.parametrize("wide", [pytest.param(False, marks=pytest.mark.slow), True])
def test_pycanon(golden, wide):
    """All cases in tables of one size, filled up with rows of weight 0: they share a program."""
    cases = [(golden[f"c{case}_X"], golden[f"c{case}_s"]) for case in range(int(golden["n_cases"]))]
    rows, columns = np.max([X.shape for X, _ in cases], axis=0)
    card, values = (1 + max(int(case[i].max()) for case in cases) for i in (0, 1))
    with jax.enable_x64(wide):
        for case, (X, s) in enumerate(cases):
            missing = rows - len(X)
            table = np.pad(X, ((0, missing), (0, columns - X.shape[1])))
            gid, _ = fairness.equivalence_classes(table, [card] * columns)
            found = fairness.privacy_levels(gid, np.pad(s, (0, missing)), values, np.arange(rows) < len(X))
            tested = {name for name in golden if name.startswith(f"c{case}_")} - {f"c{case}_X", f"c{case}_s"}
            floor = f"c{case}_entropy_l_floor"
            if floor in tested:
                # pycanon rounds exp(entropy) down; a table of even classes is an integer but for rounding.
                assert int(np.floor(float(found.entropy_l) + (1e-12 if wide else 1e-5))) == int(golden[floor])
            for name in tested - {floor}:
                value = getattr(found, NAMES[name.removeprefix(f"c{case}_")])
                np.testing.assert_allclose(
                    value,
                    golden[name],
                    rtol=1e-10 if wide else 1e-5,
                    atol=1e-12 if wide else 1e-6,
                    err_msg=name,
                )


@pytest.mark.golden("anonymity_fairness", "emd*.npz")
def test_transport_distances(golden, x64):
    for case in itertools.takewhile(lambda i: f"t{i}_tree" in golden, itertools.count()):
        tree, P, Q = (golden[f"t{case}_{name}"] for name in ("tree", "P", "Q"))
        found = {
            "emd_hier": fairness.emd_hierarchical(P, Q, tree),
            "emd_ordered": fairness.emd_ordered(P, Q),
            "emd_equal": fairness.emd_equal(P, Q),
        }
        for name, values in found.items():
            np.testing.assert_allclose(values, golden[f"t{case}_{name}"], atol=1e-8, err_msg=name)


def test_pycanon_itself():
    """Another table than those of the vectors, where the library is installed."""
    pycanon = pytest.importorskip("pycanon.anonymity")
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(7)
    X, s = rng.integers(0, 2, (60, 2)), rng.integers(0, 4, 60)
    frame = pandas.DataFrame({"a": X[:, 0], "b": X[:, 1], "s": s})
    arguments = frame, ["a", "b"], ["s"]
    gid, _ = fairness.equivalence_classes(X, [2, 2])
    found = fairness.privacy_levels(gid, s, 4)
    assert int(found.k) == pycanon.k_anonymity(frame, ["a", "b"])
    assert int(found.l) == pycanon.l_diversity(*arguments)
    assert int(found.entropy_l) == pycanon.entropy_l_diversity(*arguments)
    for value, expected in (
        (found.t_ordered, pycanon.t_closeness(*arguments)),
        (found.alpha, pycanon.alpha_k_anonymity(*arguments)[0]),
        (found.beta, pycanon.basic_beta_likeness(*arguments)),
        (found.beta_enhanced, pycanon.enhanced_beta_likeness(*arguments)),
        (found.delta, pycanon.delta_disclosure(*arguments)),
        (found.c_recursive, pycanon.recursive_c_l_diversity(*arguments)[0]),
    ):
        assert float(value) == pytest.approx(expected, rel=1e-5)


def brute_force(X, s, tree=None):
    """All levels row by row, in float64."""
    rows = [tuple(row) for row in X]
    P = np.array([np.mean(s == v) for v in np.unique(s)])
    found = {"k": np.inf, "l": np.inf, "alpha": 0, "t_ordered": 0, "t_equal": 0, "beta": -np.inf, "delta": 0}
    for row in set(rows):
        own = s[[other == row for other in rows]]
        Q = np.array([np.mean(own == v) for v in np.unique(s)])
        found["k"], found["l"] = min(found["k"], len(own)), min(found["l"], len(set(own)))
        found["alpha"] = max(found["alpha"], Q.max())
        found["t_ordered"] = max(found["t_ordered"], np.abs(np.cumsum(Q - P)).sum() / max(len(P) - 1, 1))
        found["t_equal"] = max(found["t_equal"], np.abs(Q - P).sum() / 2)
        found["beta"] = max(found["beta"], ((Q - P) / P).max())
        found["delta"] = max(found["delta"], np.abs(np.log(Q[Q > 0] / P[Q > 0])).max())
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_dropped_rows_do_not_exist(seed):
    """A table with rows of weight 0 has the levels of the table without them; values die out with them."""
    rng = np.random.default_rng(seed)
    X, s = rng.integers(0, 3, (24, 2)), rng.choice([0, 2, 3, 5], 24)
    weight = (rng.random(24) < 0.7).astype(np.float32)
    weight[0] = 1
    gid, count = fairness.equivalence_classes(X, [3, 3], weight)
    found = fairness.privacy_levels(gid, s, 6, weight)
    kept = weight > 0
    for name, value in brute_force(X[kept], s[kept]).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(gid, np.unique(X, axis=0, return_inverse=True)[1].ravel())
    assert count.sum() == kept.sum()


def test_packing_does_not_matter():
    """Columns in one word, in several with ranks between, and as separate keys give the same classes."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 4, (50, 12)) * rng.integers(0, 2, 12)
    expected = np.unique(X, axis=0, return_inverse=True)[1].ravel()
    rows = rng.random(50) < 0.6
    sizes = sorted(np.unique(X[rows], axis=0, return_counts=True)[1])
    sizes_of = jax.jit(class_sizes, static_argnums=1)
    for bits in (9, 31):
        cards = np.full(12, 2**bits, np.int64)
        np.testing.assert_array_equal(fairness.equivalence_classes(X, cards)[0], expected)
        found = sizes_of(jnp.asarray(X), tuple(cards.tolist()), jnp.asarray(rows))
        assert sorted(np.asarray(found)[np.asarray(found) > 0]) == sizes
    traced, _ = jax.jit(fairness.equivalence_classes)(X, jnp.full(12, 4))
    np.testing.assert_array_equal(traced, expected)


def test_tree_and_conventions():
    s = np.array([0, 1, 0, 2, 2, 3, 0, 1])
    gid = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    tree = np.array([[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0]])
    found = fairness.privacy_levels(gid, s, 4, tree=tree, convention="machanavajjhala")
    P = np.bincount(s) / 8
    classes = [np.bincount(s[gid == c], minlength=4) / np.sum(gid == c) for c in (0, 1)]
    expected = max(float(fairness.emd_hierarchical(P, Q, tree)) for Q in classes)
    assert float(found.t_hier) == pytest.approx(expected, rel=1e-6)
    # l is 2: in class 0 the counts are 2, 1; in class 1 they are 2, 1, 1, 1. r_1 / (r_2 + ...)
    assert float(found.c_recursive) == pytest.approx(2.0)
    assert np.isnan(fairness.privacy_levels(gid, s, 4).t_hier)


def test_degenerate_tables():
    """One value, one class, no row: defined, not NaN where a number makes sense."""
    one = fairness.privacy_levels(np.array([0, 0, 1]), np.zeros(3, int), 1)
    assert (int(one.k), int(one.l), float(one.t_ordered), float(one.t_equal), float(one.beta)) == (
        1,
        1,
        0,
        0,
        0,
    )
    assert np.isnan(one.c_recursive)
    none = fairness.privacy_levels(np.array([0, 0]), np.array([0, 1]), 2, np.zeros(2))
    assert (int(none.k), int(none.l)) == (0, 0)
    assert np.isnan(none.t_equal)


@pytest.mark.slow
def test_jit_vmap_and_bfloat16():
    rng = np.random.default_rng(1)
    gid, s = jnp.asarray(rng.integers(0, 5, (3, 40))), jnp.asarray(rng.integers(0, 3, (3, 40)))
    weight = jnp.asarray(rng.random((3, 40)) < 0.8)
    together = jax.jit(jax.vmap(lambda *x: fairness.privacy_levels(x[0], x[1], 3, x[2])))(gid, s, weight)
    for i in range(3):
        alone = fairness.privacy_levels(gid[i], s[i], 3, weight[i].astype(jnp.bfloat16))
        for name, value in alone._asdict().items():
            np.testing.assert_allclose(getattr(together, name)[i], value, rtol=1e-5, err_msg=name)
    P, Q = (jnp.asarray(x, jnp.bfloat16) for x in ([0.5, 0.5], [0.25, 0.75]))
    assert fairness.emd_ordered(P, Q).dtype == jnp.float32
    gradient = jax.grad(lambda q: fairness.emd_ordered(jnp.array([0.5, 0.5]), q))(jnp.array([0.25, 0.75]))
    assert float(gradient[1] - gradient[0]) == 1  # mass that moves up one value


def test_what_is_refused():
    for call, error, message in (
        (lambda: fairness.equivalence_classes(np.array([[2]]), [2]), ValueError, "G: expected codes from 0"),
        (
            lambda: fairness.equivalence_classes(np.array([[0]]), [2, 2]),
            ValueError,
            "cards: expected one number",
        ),
        (
            lambda: fairness.equivalence_classes(np.array([[0.5]]), [2]),
            TypeError,
            "G: expected integer codes",
        ),
        (
            lambda: fairness.equivalence_classes(np.array([[0]]), [2], np.array([np.nan])),
            ValueError,
            "weight: expected finite numbers, none negative",
        ),
        (
            lambda: fairness.privacy_levels(np.array([0]), np.array([2]), 2),
            ValueError,
            "s: expected codes from 0 to 1",
        ),
        (
            lambda: fairness.privacy_levels(np.array([1]), np.array([0]), 2),
            ValueError,
            "gid: expected codes from 0 to 0",
        ),
        (
            lambda: fairness.privacy_levels(np.array([0]), np.array([0, 1]), 2),
            ValueError,
            "gid, s: expected equally many",
        ),
        (
            lambda: fairness.privacy_levels(np.array([0]), np.array([0]), 2, convention="l"),
            ValueError,
            "convention: expected one of pycanon, machanavajjhala",
        ),
        (
            lambda: fairness.emd_equal(np.ones(2), np.ones(3)),
            ValueError,
            "P, Q: expected equally many values",
        ),
        (
            lambda: fairness.emd_hierarchical(np.ones(2), np.ones(2), np.array([[0, 1], [0, 1]])),
            ValueError,
            "tree: expected one label in the last row",
        ),
        (
            lambda: fairness.emd_hierarchical(np.ones(2), np.ones(2), np.array([[0, 0], [0, 1], [0, 0]])),
            ValueError,
            "tree: row 1 gives two labels",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
