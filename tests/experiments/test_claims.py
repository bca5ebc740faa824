"""Claims: criteria, intervals with the coverage they say, verdicts, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.claims import AtLeast, AtMost, Claim, Within, mean_interval, median_interval


def claim(criterion=None, statistic="mean", name="a-claim") -> Claim:
    return Claim(name, "sentence", "source", "paper", "measure", criterion or AtLeast(0.0), statistic)


def test_mean_interval_is_students():
    values = np.array([1.0, 2.5, 3.0, 7.0])
    estimate, low, high, confidence = mean_interval(values)
    expected = stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values))
    np.testing.assert_allclose([low, high], expected, rtol=1e-12)
    assert (estimate, confidence) == (values.mean(), 0.95)


def test_median_interval_takes_the_ranks_of_the_tables():
    # Ranks of the 95 % interval as the printed tables have them.
    for count, rank in {6: 1, 8: 1, 9: 2, 10: 2, 20: 6, 25: 8, 100: 40}.items():
        values = np.random.default_rng(count).permutation(count).astype(float)
        _, low, high, confidence = median_interval(values)
        assert (low, high) == (rank - 1, count - rank)
        assert confidence == pytest.approx(1 - 2 * stats.binom.cdf(rank - 1, count, 0.5))
        assert confidence >= 0.95


@pytest.mark.parametrize(("count", "coverage"), [(2, 0.5), (5, 0.9375)])
def test_median_of_too_few_seeds_says_its_coverage_and_decides_nothing(count, coverage):
    judgement = claim(AtLeast(0.0), "median").judge(np.arange(1.0, count + 1))
    assert judgement.confidence == pytest.approx(coverage)
    assert (judgement.low, judgement.high) == (1.0, count)
    assert judgement.verdict == "undecided"


@pytest.mark.parametrize("count", [3, 10])
def test_mean_interval_covers_as_often_as_it_says(count):
    draws = np.random.default_rng(0).normal(loc=3.0, size=(2000, count))
    covered = np.mean([low <= 3.0 <= high for _, low, high, _ in map(mean_interval, draws)])
    assert abs(covered - 0.95) < 0.02  # four standard errors of 2000 draws


@pytest.mark.parametrize("count", [4, 6, 9, 20])
def test_median_interval_covers_as_often_as_it_says(count):
    draws = np.random.default_rng(1).exponential(size=(2000, count))
    intervals = [median_interval(draw) for draw in draws]
    covered = np.mean([low <= math.log(2) <= high for _, low, high, _ in intervals])
    confidence = intervals[0][3]
    assert abs(covered - confidence) < 4 * math.sqrt(confidence * (1 - confidence) / 2000)


def test_a_claim_on_its_edge_is_seldom_decided():
    draws = np.random.default_rng(2).normal(size=(1000, 5))
    verdicts = [claim(AtLeast(0.0)).judge(draw).verdict for draw in draws]
    assert 0.01 < verdicts.count("holds") / 1000 < 0.04
    assert 0.01 < verdicts.count("does not hold") / 1000 < 0.04


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize(
    ("criterion", "verdict"),
    [
        (AtLeast(0.5), "holds"),
        (AtLeast(9.0), "does not hold"),
        (AtLeast(3.5), "undecided"),
        (AtMost(9.0), "holds"),
        (AtMost(0.5), "does not hold"),
        (AtMost(3.5), "undecided"),
        (Within(0.5, 9.0), "holds"),
        (Within(9.0, 10.0), "does not hold"),
        (Within(-2.0, 0.5), "does not hold"),
        (Within(3.0, 9.0), "undecided"),
        (Within(3.4, 3.6), "undecided"),
    ],
)
def test_verdicts(criterion, statistic, verdict):
    assert claim(criterion, statistic).judge([1, 2, 3, 4, 5, 6]).verdict == verdict


def test_touching_the_threshold_meets_it():
    same = [2.0] * 6
    assert claim(AtLeast(2.0)).judge(same).verdict == "holds"
    assert claim(AtMost(2.0)).judge(same).verdict == "holds"
    assert claim(Within(2.0, 2.0)).judge(same).verdict == "holds"


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_one_seed_decides_nothing(statistic):
    judgement = claim(AtLeast(0.0), statistic).judge([1e9])
    assert judgement.verdict == "undecided"
    assert (judgement.estimate, judgement.low, judgement.high) == (1e9, -math.inf, math.inf)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12),
    st.sampled_from(["mean", "median"]),
    st.floats(-1e6, 1e6),
)
def test_verdict_follows_from_the_interval(values, statistic, threshold):
    judgement = claim(AtLeast(threshold), statistic).judge(values)
    assert judgement.low <= judgement.high
    assert judgement.low - 1e-6 <= judgement.estimate <= judgement.high + 1e-6
    if judgement.confidence < 0.95:
        assert judgement.verdict == "undecided"
    else:
        assert (judgement.verdict == "holds") == (judgement.low >= threshold)
        assert (judgement.verdict == "does not hold") == (judgement.high < threshold)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, math.nan, 2.0], "claim 'a-claim': values: expected finite numbers, got nan at seed 1"),
        ([math.inf], "claim 'a-claim': values: expected finite numbers, got inf at seed 0"),
        ([], r"claim 'a-claim': values: .* got shape \[0\]"),
        ([[1.0, 2.0]], r"claim 'a-claim': values: expected one number per seed.* got shape \[1, 2\]"),
        (3.0, r"claim 'a-claim': values: .* got shape \[\]"),
        (["high"], "claim 'a-claim': values: expected numbers, got"),
    ],
)
def test_wrong_values_name_the_claim(values, message):
    with pytest.raises(ValueError, match=message):
        claim().judge(values)


def test_wrong_claims():
    with pytest.raises(ValueError, match=r"expected kebab-case .* got 'A claim'"):
        claim(name="A claim")
    with pytest.raises(ValueError, match=r"claim 'a-claim': statistic: expected .*, got 'mode'"):
        claim(statistic="mode")
    with pytest.raises(ValueError, match=r"AtLeast.threshold: expected a finite number, got nan"):
        AtLeast(math.nan)
    with pytest.raises(ValueError, match=r"AtMost.threshold: expected a finite number, got inf"):
        AtMost(math.inf)
    with pytest.raises(ValueError, match=r"Within.low: expected at most Within.high = 1, got 2"):
        Within(2, 1)
