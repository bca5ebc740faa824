"""The pipeline: splits, codes, standardisation, and a grid beside its parts."""

import jax
import numpy as np
import pytest

from jaxneg import fairness
from jaxneg.fairness import Setting

AGES = [[str(age), f"{age // 4}", "*"] for age in range(12)]
GROUPS = [["b", "*"], ["a", "*"]]
HIERARCHIES = fairness.compose_hierarchy([AGES, GROUPS])
RANKS = {order: fairness.label_ranks([AGES, GROUPS], order=order) for order in ("lexicographic", "rank")}


def dataset(n=80, seed=0):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 2, n)
    X = np.stack([rng.integers(0, 12, n), a], axis=1)
    y = (X[:, 0] + 2 * a + rng.integers(0, 3, n) > 7).astype(int)
    return fairness.Dataset(X, y, a, *HIERARCHIES, RANKS, 1)


def test_the_split_is_scikit_learns():
    from sklearn.model_selection import train_test_split

    for n, seed in ((81, 0), (80, 7)):
        train, test = train_test_split(np.arange(n), test_size=0.2, random_state=seed)
        split = fairness.train_test_split(n, seed)
        np.testing.assert_array_equal(split.train, train)
        np.testing.assert_array_equal(split.test, test)
    with pytest.raises(ValueError, match="n, test_size: expected rows for training and test, got 1 rows"):
        fairness.train_test_split(1, 0)


@pytest.mark.parametrize("protected_in_test", ["generalised", "raw"])
def test_codes_are_those_of_the_official_label_encoder(protected_in_test):
    from sklearn.preprocessing import LabelEncoder

    data = dataset()
    split = fairness.train_test_split(80, 0)
    levels = np.array([[1, 1], [0, 0]])
    keep = np.random.default_rng(0).random((2, 64)) < 0.4
    found = fairness.encode_released(
        data, split, levels, keep, encoding="lexicographic", protected_in_test=protected_in_test
    )
    for c, own in enumerate(levels):
        for j, column in enumerate((AGES, GROUPS)):
            test_level = 0 if protected_in_test == "raw" and j == 1 else own[j]
            train = [column[v][own[j]] for v in data.X[split.train][keep[c], j]]
            test = [column[v][test_level] for v in data.X[split.test, j]]
            codes = LabelEncoder().fit_transform(train + test)
            np.testing.assert_array_equal(found.train[c][keep[c], j], codes[: len(train)])
            np.testing.assert_array_equal(found.test[c, :, j], codes[len(train) :])


def test_standardised_by_the_released_rows():
    rng = np.random.default_rng(1)
    train, test, weight = rng.integers(0, 9, (30, 2)), rng.integers(0, 9, (10, 2)), rng.random(30) < 0.5
    train[:, 1] = 4
    own, other = fairness.standardise(train, test, weight)
    kept = train[weight]
    expected = (kept[:, 0] - kept[:, 0].mean()) / kept[:, 0].std()
    np.testing.assert_allclose(own[weight, 0], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other[:, 1], test[:, 1] - 4)  # a constant column is not divided
    assert fairness.one_hot(np.array([[1, 0], [2, 1]]), 3).tolist() == [
        [0, 1, 0, 1, 0, 0],
        [0, 0, 1, 0, 1, 0],
    ]


CONFIGS = [Setting(), Setting(k=3), Setting(k=3, l=2), Setting(k=3, t=0.2), Setting(k=65)]
OPTIONS = {"hidden": 0, "steps": 50, "neighbours": 5}


@pytest.fixture(scope="module")
def table():
    return fairness.audit_grid(dataset(), CONFIGS, [0, 3], **OPTIONS)


def test_a_grid_and_its_parts(table):
    data, split = dataset(), fairness.train_test_split(80, 3)
    assert table["SPD"].shape == (2, 5)
    assert table["CM"].shape == (2, 5, 2, 2)
    np.testing.assert_array_equal(table["ok"], [[True] * 4 + [False]] * 2)
    released = fairness.release(data, split, CONFIGS)
    np.testing.assert_array_equal(table["levels"][1], released.levels)
    for c, config in enumerate(CONFIGS[:4]):
        assert table["k"][1, c] >= config.k
        assert table["l"][1, c] >= config.l
        assert table["t"][1, c] <= config.t
    assert table["dropped"][1, 0] == 0
    assert not table["levels"][:, 0].any()
    # A table that cannot be anonymised has no metrics.
    assert np.isnan(table["SPD"][:, 4]).all()
    assert np.isnan(table["NCF"][:, 4]).all()
    assert table["dropped"][0, 4] == 1


@pytest.mark.slow
def test_measures_are_those_of_each_configuration():
    rng = np.random.default_rng(2)
    p, z = rng.random((2, 16)), rng.integers(0, 4, (2, 16, 2))
    y, a = rng.integers(0, 2, (2, 16))
    found = fairness.measure(p, z, y, a, 5)
    for c in range(2):
        expected = fairness.group_metrics(y, (p[c] > 0.5).astype(int), a)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][c], value, rtol=1e-6, atol=1e-7)
        both = np.stack([1 - p[c], p[c]], axis=1)
        for name, value in fairness.individual_metrics(both, z[c], 5)._asdict().items():
            np.testing.assert_allclose(found[name][c], value, rtol=1e-4)


@pytest.mark.slow
def test_a_seed_does_not_depend_on_others(table):
    alone = fairness.audit_grid(dataset(), CONFIGS, [3], **OPTIONS)
    for name in ("SPD", "ACC", "NCF", "ALF"):
        np.testing.assert_allclose(alone[name][0], table[name][1], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_other_encodings_train():
    """Ages in the order of their digits ("10" before "2") are of little use to a linear model."""
    accuracy = {
        encoding: fairness.audit_grid(
            dataset(), CONFIGS[:2], [0, 1, 2], encoding=encoding, **(OPTIONS | {"steps": 300})
        )["ACC"]
        for encoding in ("lexicographic", "rank", "onehot")
    }
    assert np.all(accuracy["rank"] > 0.6)
    assert np.all(accuracy["onehot"] > 0.6)
    assert np.all(accuracy["lexicographic"][:, 0] < accuracy["rank"][:, 0])
    assert np.all(accuracy["lexicographic"][:, 1] > 0.6)  # generalised to three groups, which are in order


def test_what_is_refused():
    data = dataset()
    for change, options, message in (
        ({"y": data.y[:-1]}, {}, "y: expected one number for each of 80 rows, got 79"),
        ({"a": data.a + 1}, {}, "a: expected codes from 0 to 1, got 2"),
        ({"X": data.X - 1}, {}, "X: row .*: code -1 has no label in maps"),
        ({}, {"encoding": "text"}, "encoding: expected one of lexicographic, rank, onehot"),
        ({}, {"protected_in_test": "dropped"}, "protected_in_test: expected one of generalised, raw"),
        ({}, {"configs": []}, "configs: expected at least one, got none"),
        ({}, {"seeds": []}, "seeds: expected at least one, got none"),
    ):
        arguments = {"configs": CONFIGS[:1], "seeds": [0], **OPTIONS, **options}
        with pytest.raises(ValueError, match=message):
            fairness.audit_grid(data._replace(**change), **arguments)


def test_keys_belong_to_seeds():
    keys = jax.random.key_data(fairness.config_keys([1, 2], 3))
    np.testing.assert_array_equal(keys[3:], jax.random.key_data(fairness.config_keys([2], 3)))
