"""Hierarchies: the vectors, the two rules where they differ, ranks of labels, unknown codes."""

import jax
import numpy as np
import pytest

from jaxneg import fairness

AGES = [[str(age), f"{age // 10}x", "*"] for age in (17, 18, 20, 31)]
COLOURS = [["red", "*"], ["blue", "*"]]


@pytest.mark.golden("anonymity_fairness", "hierarchy_compose*.npz")
def test_both_rules_on_intervals(golden):
    values = range(int(golden["n_values"]))
    column = fairness.interval_hierarchy(golden["inf"], golden["sup"], golden["bounds_step"], values)
    for rule in ("first", "direct"):
        maps, n_levels = fairness.compose_hierarchy([column], rule)
        np.testing.assert_array_equal(maps[0], golden[rule])
        assert n_levels.tolist() == [len(golden[rule])]
        nested = fairness.is_nested(maps, n_levels)
        if rule == "first":
            assert nested


def test_intervals():
    rows = fairness.interval_hierarchy(-30, 30, [5, 10, 15])
    assert len(rows) == 61
    assert rows[0] == ["-30", "[-30, -25)", "[-30, -20)", "[-30, -15)", "*"]
    assert rows[-1] == ["30", "[25, 30)", "[20, 30)", "[15, 30)", "*"]  # the last edge is the last interval's
    assert fairness.interval_hierarchy(0, 39, [15], [99])[0][1] == "[30, 45)"
    for arguments, message in (
        ((5, 5, [1]), "hi: expected more than lo = 5, got 5"),
        ((0, 5, [0]), "steps: expected positive lengths"),
        ((0, 5, [1], [-1]), "values: expected at least lo = 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            fairness.interval_hierarchy(*arguments)


def test_columns_of_different_depth_are_padded():
    maps, n_levels = fairness.compose_hierarchy([AGES, COLOURS])
    assert maps.dtype == np.int32
    assert n_levels.tolist() == [3, 2]
    assert maps[0].tolist() == [[0, 1, 2, 3], [0, 0, 1, 2], [0, 0, 0, 0]]
    assert maps[1].tolist() == [[0, 1, -1, -1], [0, 0, -1, -1], [-1] * 4]
    by_level = {level: [row[level] for row in AGES] for level in range(3)}
    np.testing.assert_array_equal(fairness.compose_hierarchy([by_level, COLOURS]).maps, maps)


def test_ranks_are_places_among_all_labels():
    lexicographic = fairness.label_ranks([AGES])
    assert sorted(set(lexicographic.ravel())) == list(range(8))
    labels = sorted({label for row in AGES for label in row})
    for v, row in enumerate(AGES):
        for level, label in enumerate(row):
            assert labels[lexicographic[0, level, v]] == label
    rank = fairness.label_ranks([AGES, COLOURS], order="rank")
    # By the mean of base values: 17, then 17.5 of "1x", 18, 20, 20 of "2x", 21.5 of "*", 31, 31 of "3x".
    assert rank[0, 0].tolist() == [0, 2, 3, 6]
    assert rank[0, 1].tolist() == [1, 1, 4, 7]
    assert rank[0, 2].tolist() == [5] * 4
    assert rank[1, 0].tolist() == [2, 1, -1, -1]


def test_generalise_is_a_lookup():
    maps, _ = fairness.compose_hierarchy([AGES, COLOURS])
    X = np.array([[3, 1], [1, 0], [2, 1]])
    for levels in ([0, 0], [1, 1], [2, 0]):
        expected = [[maps[j, levels[j], row[j]] for j in range(2)] for row in X]
        np.testing.assert_array_equal(fairness.generalise(X, maps, np.array(levels)), expected)
        np.testing.assert_array_equal(jax.jit(fairness.generalise)(X, maps, np.array(levels)), expected)
    both = jax.vmap(fairness.generalise, (None, None, 0))(X, maps, np.array([[0, 0], [1, 1]]))
    assert both.shape == (2, 3, 2)


def test_what_is_refused():
    maps, _ = fairness.compose_hierarchy([AGES, COLOURS])
    levels = np.array([0, 0])
    for X, message in (
        ([[4, 0]], r"X: row 0, column 0: code 4 has no label in maps: drop rows with missing values"),
        ([[0, 0], [0, 2]], r"X: row 1, column 1: code 2 has no label"),
        ([[-1, 0]], r"X: row 0, column 0: code -1 has no label"),
        ([[0]], r"maps, levels: expected those of the 1 columns of X"),
        (np.zeros((0, 2), int), r"X: expected 2 axes, none of them empty"),
    ):
        with pytest.raises(ValueError, match=message):
            fairness.generalise(np.asarray(X), maps, levels)
    for X in ([[0.0, np.nan]], [["a", "b"]]):
        with pytest.raises(TypeError, match="X: expected integer codes, got"):
            fairness.generalise(np.asarray(X), maps, levels)
    with pytest.raises(ValueError, match="levels: expected codes from 0 to 2, got 3"):
        fairness.generalise(np.array([[0, 0]]), maps, np.array([3, 0]))
    for columns, message in (
        ([], "columns: expected the hierarchy of at least one column"),
        ([[["a", "*"], ["b"]]], "columns: column 0, row 1: expected 2 labels, one for each level, got 1"),
        ([COLOURS, [["a", "*"], ["a", "*"]]], "columns: column 1: the base value 'a' has two rows"),
        ([{0: ["a"], 1: []}], "columns: column 0: expected a label of each base value at each level"),
    ):
        with pytest.raises(ValueError, match=message):
            fairness.compose_hierarchy(columns)
    with pytest.raises(ValueError, match="rule: expected one of first, direct, got 'last'"):
        fairness.compose_hierarchy([COLOURS], "last")
    with pytest.raises(ValueError, match="order: expected one of lexicographic, rank"):
        fairness.label_ranks([COLOURS], order="size")
