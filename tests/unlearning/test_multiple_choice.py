"""Multiple choice: scores of letters, the accuracy, prompts, wrong arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.unlearning import multiple_choice_correct, multiple_choice_prompt, option_scores

IDS = np.array([[3, 7], [1, 5], [0, 2], [8, 4]])


def _logits(dtype=np.float32):
    return np.random.default_rng(0).standard_normal((6, 9)).astype(dtype)


def test_scores_sum_the_forms_of_a_letter():
    logits = _logits()
    found = jax.jit(option_scores)(logits, IDS)
    np.testing.assert_allclose(found, np.log(np.exp(logits[:, IDS]).sum(-1)), rtol=1e-5)
    np.testing.assert_allclose(option_scores(logits, IDS[:, 0]), logits[:, IDS[:, 0]], rtol=1e-6)
    assert option_scores(jnp.asarray(logits, jnp.bfloat16), IDS).dtype == jnp.float32


def test_accuracy():
    scores = option_scores(_logits(), IDS)
    best = np.asarray(scores).argmax(-1)
    assert multiple_choice_correct(scores, best).tolist() == [1] * 6
    assert multiple_choice_correct(scores, (best + 1) % 4).tolist() == [0] * 6
    stacked = jax.vmap(multiple_choice_correct)(
        jnp.stack([scores, scores]), jnp.stack([best, (best + 1) % 4])
    )
    assert stacked.mean(1).tolist() == [1, 0]


def test_prompts():
    assert multiple_choice_prompt(" Why? ", ["a", "b", "c"], "biology") == (
        "The following are multiple choice questions (with answers) about biology.\n\n"
        "Why?\nA. a\nB. b\nC. c\nAnswer:"
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: multiple_choice_prompt("?", ["a"]), ValueError, "options: expected 2 to 10 of them, got 1"),
        (
            lambda: option_scores(jnp.ones((2, 3, 4)), IDS),
            ValueError,
            r"logits: expected the shape \[batch, vocab\]",
        ),
        (lambda: option_scores(jnp.ones((2, 3)), IDS[None]), ValueError, r"option_ids: .* got \(1, 4, 2\)"),
        (lambda: option_scores(jnp.ones((2, 3), int), IDS), TypeError, "logits: expected a floating dtype"),
        (
            lambda: multiple_choice_correct(jnp.ones((2, 3)), jnp.ones(3, int)),
            ValueError,
            r"answer: expected one number for each row .* got shape \(3,\) beside \(2, 3\)",
        ),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
