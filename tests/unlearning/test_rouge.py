"""ROUGE and MUSE's measures: official recalls of real generations, brute force, where answers end."""

import sys

import numpy as np
import pytest

from jaxneg.unlearning import first_answer, knowmem, knowmem_prompt, rouge, rouge_l_recall, verbmem


@pytest.mark.golden("npo", "rouge_texts*.npz")
def test_official_recalls(golden):
    generated, reference = golden["generated"].tolist(), golden["reference"].tolist()
    np.testing.assert_allclose(rouge_l_recall(generated, reference), golden["rougeL_recall"], atol=1e-9)
    np.testing.assert_allclose(
        rouge(generated, reference, "rouge1").recall, golden["rouge1_recall"], atol=1e-9
    )


def _common(a, b):
    """Length of the longest common subsequence."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return _common(a[:-1], b[:-1]) + 1
    return max(_common(a[:-1], b), _common(a, b[:-1]))


def test_shares_of_the_longest_common_subsequence():
    random = np.random.default_rng(0)
    for _ in range(10):
        a, b = ([f"w{n}" for n in random.integers(0, 4, size)] for size in (5, 7))
        common = _common(a, b)
        found = rouge([" ".join(a)], [" ".join(b)])
        np.testing.assert_allclose([found.precision[0], found.recall[0]], [common / 5, common / 7])
        np.testing.assert_allclose(found.f1[0], 2 * common / 12)


def test_the_stemmer_joins_forms_of_a_word():
    assert rouge(["writing"], ["writes"]).recall.tolist() == [1]
    assert rouge(["writing"], ["writes"], stem=False).recall.tolist() == [0]
    assert verbmem(["writing"], ["writes"]).tolist() == [0]
    assert knowmem(["writing"], ["writes"], stem=True).tolist() == [1]


def test_empty_generations_score_nothing():
    assert rouge_l_recall(["", "Paris"], ["Paris", "Paris"]).tolist() == [0, 1]


def test_short_answers_are_cut_where_the_next_question_begins():
    text = "Paris \n\nQuestion: What is Rome?"
    assert first_answer(text) == "Paris "
    assert first_answer("Paris\nQuestion: And?") == "Paris"
    assert first_answer("Paris Question: And?") == "Paris "
    assert first_answer("Paris") == "Paris"
    assert knowmem([text], ["Paris"]).tolist() == [1]
    assert verbmem([text], ["Paris"])[0] < 1
    assert knowmem_prompt("Q", [("A", "B")]) == "Question: A\nAnswer: B\n\nQuestion: Q\nAnswer: "


@pytest.mark.parametrize("function", [rouge, rouge_l_recall, verbmem, knowmem])
@pytest.mark.parametrize(
    ("generated", "reference", "error", "message"),
    [
        (["a"], ["a", "b"], ValueError, "generated: expected a text for each of the 2 references, got 1"),
        ([], [], ValueError, "generated: expected at least one text, got none"),
        ("a", ["a"], TypeError, "generated: expected a sequence of texts, got one text"),
        (["a"], "a", TypeError, "reference: expected a sequence of texts, got one text"),
    ],
)
def test_wrong_texts(function, generated, reference, error, message):
    with pytest.raises(error, match=message):
        function(generated, reference)


def test_a_kind_that_does_not_exist():
    with pytest.raises(ValueError, match="kind: expected 'rouge1', 'rouge2' or 'rougeL', got 'rouge9'"):
        rouge(["a"], ["a"], "rouge9")


def test_without_the_package_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(ModuleNotFoundError, match=r"rouge-score: pip install 'jaxneg\[experiments\]'"):
        rouge(["a"], ["a"])
