"""Prompts, spans and answers: every format and scenario, balance, words in their places, texts that match."""

import string

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.language import (
    FORMATS,
    UNKNOWN,
    UNPARSABLE,
    Item,
    answer_ids,
    answers_match,
    label_forms,
    label_logits,
    make_prompts,
    normalized_answer,
    parse_label,
    scenarios_of,
    surface_forms,
    token_positions,
    wrong_answer,
)

ITEMS = [
    Item(
        f"q{n}",
        f"Which is number {n}?",
        f"right {n}",
        tuple(f"wrong {n}{j}" for j in range(3)),
        passage=f"It is {n}.",
    )
    for n in range(40)
]
TWO_WORDS = [fmt for fmt in FORMATS if "no-first" in scenarios_of(fmt)]


def test_the_texts_of_the_main_formats():
    item = Item("sea", "What is wet?", "water", ("sand",), passage="Water is wet.")
    text = {fmt: make_prompts([item], fmt)[0].text for fmt in FORMATS}
    judged = 'Is "water" the correct answer to the question "What is wet?"?'
    assert text["SA"] == "Question: What is wet?\nAnswer with a short phrase.\nAnswer:"
    assert text["YN"] == f"Answer the question with Yes or No.\nQuestion: {judged}\nAnswer:"
    assert text["MC-yn"] == f"Question: {judged}\nA. Yes\nB. No\nAnswer with the letter only.\nAnswer:"
    assert text["MC-ny"] == f"Question: {judged}\nA. No\nB. Yes\nAnswer with the letter only.\nAnswer:"
    assert "Is it false that" in text["negated-YN"]
    assert text["TF"].startswith("Judge the statement with True or False.\nStatement: ")
    assert make_prompts([item], "YN", "context")[0].text == f"Context: Water is wet.\n{text['YN']}"
    assert "Answer Yes, No, or I don't know." in make_prompts([item], "YN", "idk")[0].text
    assert "Answer No, Yes, or I don't know." in make_prompts([item], "YN", "idk+no-first")[0].text
    thought = make_prompts([item], "YN", "cot")[0].text
    assert thought.startswith("Think step by step, then finish with 'Answer: Yes' or 'Answer: No'.\n")
    assert (
        "'Answer: Yes', 'Answer: No' or 'Answer: I don't know'."
        in make_prompts([item], "YN", "cot+idk")[0].text
    )
    letters = make_prompts(ITEMS[:1], "MC")[0]
    assert letters.labels == ("A", "B", "C", "D")
    assert f"{letters.labels[letters.gold]}. right 0\n" in letters.text


@pytest.mark.parametrize("fmt", FORMATS)
def test_each_format_is_balanced_and_points_at_its_words(fmt):
    extras = scenarios_of(fmt)
    for scenario in ("plain", *extras, "+".join(extras)):
        prompts = make_prompts(ITEMS, fmt, scenario)
        if fmt in ("SA", "MC"):
            assert [prompt.item for prompt in prompts] == [item.id for item in ITEMS]
            assert all(prompt.positive is None for prompt in prompts)
        else:
            assert [prompt.positive for prompt in prompts] == [True, False] * len(ITEMS)
            gold = np.array([prompt.gold for prompt in prompts])
            assert gold.mean() == 0.5
            reverse = fmt in ("negated-YN", "wrong-YN")
            assert (gold == np.array([0, 1] * len(ITEMS)) ^ reverse).all()
        for prompt in prompts:
            begin, end = prompt.spans["instruction"]
            assert prompt.text[begin:end].endswith(".")
            if fmt in TWO_WORDS:
                words = [prompt.text[slice(*prompt.spans[name])] for name in ("yes", "no")]
                assert tuple(words) == prompt.labels[:2]
                assert begin <= min(prompt.spans["yes"][0], prompt.spans["no"][0])
                assert (UNKNOWN in prompt.labels) == ("idk" in scenario)
                assert (prompt.spans["yes"] > prompt.spans["no"]) == ("no-first" in scenario)


def test_what_is_drawn_depends_on_the_item_alone():
    alone = make_prompts(ITEMS[7:8], "MC")[0]
    assert alone == make_prompts(ITEMS, "MC")[7]
    assert wrong_answer(ITEMS[7]) in ITEMS[7].wrong
    assert len({ITEMS[n].wrong.index(wrong_answer(ITEMS[n])) for n in range(40)}) == 3
    assert len({prompt.gold for prompt in make_prompts(ITEMS, "MC")}) == 4
    many = Item("many", "Q?", "a", tuple("bcdefgh"))
    assert make_prompts([many], "MC")[0].text.count("\n") == 6  # the answer and three others


def test_positions_of_the_words_in_tokens():
    prompt = make_prompts(ITEMS[:1], "YN")[0]
    words, offsets, at = prompt.text.split(" "), [], 0
    for word in words:  # a space belongs to the token behind it, "No.\nQuestion:" is one token
        offsets.append((at - (at > 0), at + len(word)))
        at += len(word) + 1
    t_yes, t_no, lo, hi = token_positions(offsets, prompt.spans)
    assert words[t_yes] == "Yes"
    assert words[t_no].startswith("No.")
    assert (lo, hi) == (t_no, len(words))  # the token holds the instruction's end and what follows it
    split = [(i, i + 1) for i in range(len(prompt.text))]
    t_yes, t_no, lo, hi = token_positions(split, prompt.spans)
    assert (prompt.text[t_yes], prompt.text[t_no], prompt.text[lo]) == ("s", "o", "\n")
    with_template = [(0, 0), *split, (0, 0)]
    assert token_positions(with_template, prompt.spans) == (t_yes + 1, t_no + 1, lo + 1, hi + 2)
    with pytest.raises(ValueError, match=r"offsets: no token covers 'no'"):
        token_positions(split[: prompt.spans["no"][0]], prompt.spans)
    with pytest.raises(ValueError, match=r"offsets: no token comes after the instruction"):
        token_positions(split[: prompt.spans["instruction"][1]], prompt.spans)
    with pytest.raises(
        ValueError, match=r"spans: expected 'yes', got \['instruction'\]: the prompt names no"
    ):
        token_positions(split, make_prompts(ITEMS[:1], "MC")[0].spans)


def test_bad_prompts():
    with pytest.raises(ValueError, match=r"fmt: expected one of SA, YN, .*, got 'yes-no'"):
        make_prompts(ITEMS, "yes-no")
    with pytest.raises(
        ValueError, match=r"scenario: expected plain, or some of context .* for MC, got 'idk'"
    ):
        make_prompts(ITEMS, "MC", "idk")
    with pytest.raises(ValueError, match=r"scenario: .* got 'idk\+idk'"):
        make_prompts(ITEMS, "YN", "idk+idk")
    with pytest.raises(ValueError, match=r"items: expected at least one, got none"):
        make_prompts([], "YN")
    with pytest.raises(ValueError, match=r"items: expected ids that differ, got 'q0' twice"):
        make_prompts(ITEMS[:1] * 2, "YN")
    with pytest.raises(ValueError, match=r"items: 'context' needs a passage, and item 'x' has none"):
        make_prompts([Item("x", "Q?", "a", ("b",))], "YN", "context")
    with pytest.raises(ValueError, match=r"item 'x': expected at least one wrong answer, none of them 'a'"):
        Item("x", "Q?", "a", ("b", "a"))
    with pytest.raises(ValueError, match=r"item 'x': expected a question and an answer"):
        Item("x", " ", "a", ("b",))


def encode(text):
    """A tokenizer with a mark for a leading space, as SentencePiece has it: words are tokens."""
    words = text.replace(" ", " ▁").split(" ")
    return [sum(ord(c) * 31**i for i, c in enumerate(word)) % 997 for word in words if word]


def test_forms_of_labels():
    forms = label_forms(encode, ["Yes", "No"])
    assert all(len(set(of)) == 6 for of in forms)
    assert not set(forms[0]) & set(forms[1])
    assert "I DON'T KNOW" in surface_forms(UNKNOWN)

    def alone(text):
        return [0, *encode(text.strip())] if text.startswith(" ") else encode(text)

    assert all(0 not in of for of in label_forms(alone, ["Yes", "No"]))  # a space that stands alone
    with pytest.raises(ValueError, match=r"labels: expected labels that differ .* 'Nope' begins as another"):
        label_forms(lambda text: [ord(text.strip()[0].lower())], ["Yes", "Nope", "No"])
    with pytest.raises(ValueError, match=r"labels: expected at least two, got \['Yes'\]"):
        label_forms(encode, ["Yes"])
    with pytest.raises(ValueError, match=r"label: expected a word, got ' '"):
        surface_forms(" ")


def test_logits_of_labels():
    logits = np.random.default_rng(0).normal(size=(3, 5, 20)).astype(np.float32)
    forms = ((3,), (0, 7, 9), (1, 19))
    expected = np.stack([np.log(np.exp(logits[..., of].astype(np.float64)).sum(-1)) for of in forms], -1)
    for run in (label_logits, jax.jit(label_logits, static_argnums=1)):
        np.testing.assert_allclose(run(jnp.asarray(logits), forms), expected, rtol=1e-5, atol=1e-6)
    half = label_logits(jnp.asarray(logits, jnp.bfloat16), forms)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, expected, atol=0.02)
    slope = jax.grad(lambda logits: label_logits(logits, forms)[..., 1].sum())(jnp.asarray(logits))
    np.testing.assert_allclose(slope.sum(-1), 1, rtol=1e-5)
    assert not np.asarray(slope)[..., 3].any()
    with pytest.raises(
        ValueError, match=r"forms: expected at least one token below 20 .* got \[20\] for label 1"
    ):
        label_logits(logits, [[1], [20]])
    with pytest.raises(ValueError, match=r"forms: .* got \[\] for label 0"):
        label_logits(logits, [[], [1]])
    with pytest.raises(TypeError, match=r"logits: expected a floating dtype, got int32"):
        label_logits(logits.astype(np.int32), forms)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.text(string.ascii_letters + " .,!'", max_size=30))
def test_normal_forms_stay_as_they_are(text):
    once = normalized_answer(text)
    assert normalized_answer(once) == once
    assert once == once.lower().strip()


def test_answers_that_match():
    assert answers_match("The Eiffel tower!", ["eiffel tower"])
    assert answers_match("U.S.A.", ["USA", "U S A"])
    assert not answers_match("Londonderry", ["London"])
    assert not answers_match("", [""])
    assert normalized_answer("\n\n Don't -- panic\nNext") == "dont panic"


def test_samples_as_numbers():
    samples = ["Paris", "paris, France", "Rome", "the Rome", "Oslo", "I don't know.", "...", "Not sure"]
    ids, gold, refusal = answer_ids(samples, ["Paris"])
    assert (gold, refusal) == (0, 1)
    assert ids.tolist() == [0, 0, 2, 2, 3, 1, UNPARSABLE, 1]
    with pytest.raises(ValueError, match=r"samples: expected at least one, and an answer, got 0 and 1"):
        answer_ids([], ["Paris"])


def test_labels_of_texts():
    labels = ("Yes", "No", UNKNOWN)
    assert parse_label(" yes, No", labels) == 0
    assert parse_label("Not that I know. NO!", labels) == 1
    assert parse_label("I don't know, yes?", labels) == 2
    assert parse_label("perhaps", labels) == UNPARSABLE
    assert parse_label("Answer: Yes? No. Answer: No", labels, marker="Answer:") == 1
    assert parse_label("No.", labels, marker="Answer:") == UNPARSABLE  # a chain that was cut
    assert parse_label("It is Incorrect", ("Correct", "Incorrect")) == 1
