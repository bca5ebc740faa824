"""Truth ratios, probabilities and model utility: real logs of TOFU, float32, limits, wrong arguments."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy import stats
from scipy.special import log_softmax, softmax

from jaxneg.unlearning import (
    TofuLog,
    answer_probability,
    average_loss,
    forget_quality,
    model_utility,
    probability_with_options,
    tofu_report,
    truth_ratio,
    truth_ratio_score,
)

ARRAYS = ("avg_gt_loss", "avg_paraphrased_loss", "average_perturb_loss", "rougeL_recall")
SETS = {"retain": "retain", "ra": "real_authors", "wf": "world_facts", "forget": "forget"}

# What the files call sets and measures.
NAMES = {"Retain": "retain", "Real_Authors": "real_authors", "Real_World": "world_facts", "Forget": "forget"}
MEASURES = {
    "ROUGE": "rouge",
    "Prob.": "probability",
    "Probability": "probability",
    "Truth_Ratio": "truth_ratio",
}


_truth_ratio = jax.jit(truth_ratio, static_argnums=2)


def _logs(golden):
    """Model -> set -> log."""
    models = {name.split("__")[0] for name in golden if not name.startswith("expect__")}
    return {
        model: {
            name: TofuLog(*(golden[f"{model}__{key}__{array}"] for array in ARRAYS))
            for key, name in SETS.items()
        }
        for model in models
    }


def _looked_up(report, name):
    if name == "Model_Utility":
        return report.model_utility
    (set_name,) = (ours for theirs, ours in NAMES.items() if theirs in name)
    (measure,) = {ours for theirs, ours in MEASURES.items() if theirs in name}
    return report.scores[set_name][measure]


@pytest.mark.golden("npo", "tofu_logs*.npz")
def test_real_logs(golden):
    logs = _logs(golden)
    expected = [
        name for name in golden if name.startswith("expect__") and not name.startswith("expect__fq__")
    ]
    assert expected
    reports = {
        (model, mean): tofu_report(logs[model], mean=mean) for model in logs for mean in ("geo", "arith")
    }
    for name in expected:
        _, model, mean, number = name.split("__", 3)
        found = _looked_up(reports[model, mean], number)
        np.testing.assert_allclose(found, golden[name], rtol=1e-10, err_msg=name)


@pytest.mark.golden("npo", "tofu_logs*.npz")
def test_real_forget_qualities(golden):
    logs = _logs(golden)
    pairs = [name for name in golden if name.startswith("expect__fq__")]
    assert pairs
    for name in pairs:
        _, _, model, _, retrained = name.split("__")
        reference = tofu_report(logs[retrained]).forget_truth_ratio
        p, stat = tofu_report(logs[model], reference).forget_quality
        np.testing.assert_allclose(np.log10(p), np.log10(golden[name][0]), atol=1e-6, err_msg=name)
        np.testing.assert_allclose(stat, golden[name][1], rtol=1e-10, err_msg=name)
        # In float32, and with 1/R in place of R.
        ratios = [1 / _truth_ratio(*logs[each]["forget"][1:3], "geo") for each in (model, retrained)]
        np.testing.assert_allclose(np.log10(forget_quality(*ratios).p), np.log10(golden[name][0]), atol=1e-6)


@pytest.mark.golden("npo", "tofu_logs*.npz")
def test_real_logs_in_float32(golden):
    for model, logs in _logs(golden).items():
        reports = {mean: tofu_report(logs, mean=mean) for mean in ("geo", "arith")}
        for name, log in logs.items():
            probability, *scores = _in_float32(*log[:3], name)
            for mean, score in zip(reports, scores, strict=True):
                assert score.dtype == probability.dtype == jnp.float32
                expected = reports[mean].scores[name]
                found = np.mean([score, probability], axis=1, dtype=np.float64)
                np.testing.assert_allclose(
                    found, [expected["truth_ratio"], expected["probability"]], rtol=1e-6, err_msg=model
                )


@partial(jax.jit, static_argnums=3)
def _in_float32(answer, right, wrong, name):
    options = name not in ("retain", "forget")
    goal = "forget" if name == "forget" else "keep"
    return [
        probability_with_options(answer, wrong) if options else answer_probability(answer),
        *(truth_ratio_score(truth_ratio(right, wrong, mean), goal) for mean in ("geo", "arith")),
    ]


def _losses(seed=0, questions=6, wrong=5, dtype=np.float32):
    random = np.random.default_rng(seed)
    return random.gamma(2, 1, questions).astype(dtype), random.gamma(2, 1, (questions, wrong)).astype(dtype)


def test_formulas_word_for_word(x64):
    correct, wrong = _losses(dtype=np.float64)
    np.testing.assert_allclose(
        truth_ratio(correct, wrong), np.exp(correct) / np.exp(wrong.mean(1)), rtol=1e-12
    )
    arithmetic = np.exp(-wrong).mean(1) / np.exp(-correct)
    np.testing.assert_allclose(truth_ratio(correct, wrong, "arith"), arithmetic, rtol=1e-12)
    options = softmax(-np.concatenate([correct[:, None], wrong], 1), axis=1)[:, 0]
    np.testing.assert_allclose(probability_with_options(correct, wrong), options, rtol=1e-12)
    p, others = np.exp(-correct), np.exp(-wrong).sum(1)
    np.testing.assert_allclose(
        probability_with_options(correct, wrong, 1e-2), p / (p + others + 1e-2), rtol=1e-12
    )


def test_geometric_is_below_arithmetic_and_equal_for_one_wrong_answer():
    correct, wrong = _losses()
    arithmetic = np.asarray(_truth_ratio(correct, wrong, "arith"))
    assert (np.asarray(_truth_ratio(correct, wrong, "geo")) <= arithmetic * (1 + 1e-6)).all()
    one, other = (_truth_ratio(correct, wrong[:, :1], mean) for mean in ("geo", "arith"))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_scores_at_their_limits():
    ratios = jnp.array([0.0, 0.5, 1.0, 2.0, jnp.inf])
    assert truth_ratio_score(ratios, "forget").tolist() == [0, 0.5, 1, 0.5, 0]
    assert truth_ratio_score(ratios, "keep").tolist() == [1, 0.5, 0, 0, 0]
    # A collapsed model gives all answers the same loss.
    assert truth_ratio(jnp.full(3, 30.0), jnp.full((3, 5), 30.0)).tolist() == [1, 1, 1]


def test_losses_in_the_hundreds_stay_finite():
    correct, wrong = jnp.array([300.0, 500.0]), jnp.array([[301.0, 302.0], [100.0, 90.0]])
    compiled = jax.jit(probability_with_options, static_argnums=2)
    expected = [1 / (1 + np.exp(-1) + np.exp(-2)), 0]
    np.testing.assert_allclose(compiled(correct, wrong, 0.0), expected, rtol=1e-6, atol=1e-30)
    # Beside probabilities of exp(-300), open-unlearning's 1e-10 is everything.
    assert compiled(correct, wrong, 1e-10).tolist() == [0, 0]
    close = jnp.array([[301.0, 302.0], [501.0, 502.0]])
    np.testing.assert_allclose(
        _truth_ratio(correct, close, "arith"), [(np.exp(-1) + np.exp(-2)) / 2] * 2, rtol=1e-4
    )


@pytest.mark.slow
def test_jit_vmap_grad_and_bfloat16():
    correct, wrong = _losses()

    def everything(correct, wrong):
        return [
            truth_ratio(correct, wrong),
            truth_ratio(correct, wrong, "arith"),
            probability_with_options(correct, wrong, 1e-10),
            answer_probability(correct),
        ]

    eager = everything(correct, wrong)
    for one, two in zip(jax.jit(everything)(correct, wrong), eager, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)
    stacked = jax.vmap(everything)(jnp.stack([correct, 2 * correct]), jnp.stack([wrong, wrong]))
    for one, two in zip(stacked, eager, strict=True):
        np.testing.assert_allclose(one[0], two, rtol=1e-6)
    gradient = jax.grad(lambda correct: truth_ratio(correct, wrong).sum())(jnp.asarray(correct))
    np.testing.assert_allclose(gradient, eager[0], rtol=1e-5)
    narrow = everything(jnp.asarray(correct, jnp.bfloat16), jnp.asarray(wrong, jnp.bfloat16))
    for one, two in zip(narrow, eager, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, two, rtol=0.05)


def test_average_loss_divides_by_all_labels():
    logits = np.random.default_rng(0).standard_normal((2, 4, 8)).astype(np.float32)
    labels = np.array([[-100, 1, 2, -100], [3, 4, 5, 6]])
    log_p = log_softmax(logits, axis=-1)
    expected = [
        -(log_p[0, 0, 1] + log_p[0, 1, 2]) / 2,
        -(log_p[1, 0, 4] + log_p[1, 1, 5] + log_p[1, 2, 6]) / 4,
    ]
    compiled = jax.jit(average_loss)
    np.testing.assert_allclose(compiled(logits, labels), expected, rtol=1e-6)
    assert np.isnan(compiled(logits, np.full_like(labels, -100))).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(kind):
    correct, wrong = _losses(questions=8)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        place = NamedSharding(mesh, P("data"))
        placed = jax.device_put(correct, place), jax.device_put(wrong, place)
        found = jax.jit(lambda *x: (truth_ratio(*x), truth_ratio(*x, "arith"), probability_with_options(*x)))(
            *placed
        )
    expected = truth_ratio(correct, wrong), truth_ratio(correct, wrong, "arith")
    for one, two in zip(found, (*expected, probability_with_options(correct, wrong)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_model_utility_is_the_harmonic_mean():
    numbers = {"a": 0.3, "b": 0.9, "c": 0.5}
    np.testing.assert_allclose(model_utility(numbers), stats.hmean(list(numbers.values())), rtol=1e-14)
    assert model_utility({"a": 0.0, "b": 1.0}) == 0
    with pytest.raises(ValueError, match="numbers: expected at least one number, got none"):
        model_utility({})
    for wrong in (-0.1, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"numbers\['a'\]: expected a finite number of at least 0"):
            model_utility({"a": wrong})


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: truth_ratio(jnp.ones(2), jnp.ones((3, 5))), ValueError, r"avg_loss_wrong: .* got \(3, 5\)"),
        (lambda: truth_ratio(jnp.ones(2), jnp.ones(2)), ValueError, r"avg_loss_wrong: .* got \(2,\)"),
        (
            lambda: truth_ratio(jnp.ones(2), jnp.ones((2, 0))),
            ValueError,
            "avg_loss_wrong: expected at least one",
        ),
        (
            lambda: truth_ratio(jnp.ones(0), jnp.ones((0, 5))),
            ValueError,
            "avg_loss_correct: expected at least",
        ),
        (lambda: truth_ratio(jnp.ones(1, int), jnp.ones((1, 5))), TypeError, "avg_loss_correct: .* floating"),
        (
            lambda: truth_ratio(jnp.ones(1), jnp.ones((1, 2)), "mean"),
            ValueError,
            "mean: expected 'geo' or 'arith'",
        ),
        (lambda: truth_ratio_score(jnp.ones(1), "retain"), ValueError, "goal: expected 'forget' or 'keep'"),
        (lambda: answer_probability(jnp.ones(0)), ValueError, "avg_loss: expected at least one"),
        (lambda: probability_with_options(jnp.ones(2), jnp.ones((3, 5))), ValueError, "avg_loss_wrong: "),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
