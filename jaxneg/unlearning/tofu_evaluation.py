"""A whole model on TOFU: losses of right and wrong answers, generations, and the numbers made of them.

Implements the evaluation of Maini et al., "TOFU: A Task of Fictitious Unlearning for LLMs", arXiv:2401.06121,
Section 2.2, in the two forms of its code (see `truth_ratio`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxneg.unlearning.forget_quality import ForgetQuality, forget_quality
from jaxneg.unlearning.model_utility import model_utility
from jaxneg.unlearning.rouge import rouge_l_recall
from jaxneg.unlearning.sequence import IGNORE
from jaxneg.unlearning.tofu import Question
from jaxneg.unlearning.truth_ratio import (
    answer_probability,
    average_loss,
    probability_with_options,
    truth_ratio,
    truth_ratio_score,
)

SETS = ("forget", "retain", "real_authors", "world_facts")
"""The sets of an evaluation."""

Encode = Callable[[str, str], tuple[Sequence[int], int]]
"""``encode(question, answer) -> (tokens, prompt)``: the tokens of both, the last of which ends the answer,
and how many of them are the prompt. An empty answer may be given for the prompt alone."""


class TofuLog(NamedTuple):
    """What was measured on one set, one row for each question."""

    answer_loss: Float[np.ndarray, " questions"]
    """Average loss of the answer, nats per token."""
    right_loss: Float[np.ndarray, " questions"]
    """Average loss of the paraphrased answer, or of the answer where the set has none."""
    wrong_loss: Float[np.ndarray, "questions wrong"]
    """Average losses of the wrong answers."""
    rouge: Float[np.ndarray, " questions"] | None = None
    """ROUGE-L recall of the generated answer; None where nothing was generated."""


class TofuReport(NamedTuple):
    """The numbers of a model."""

    scores: dict[str, dict[str, float]]
    """Set -> "probability", "truth_ratio" and, where texts were generated, "rouge"."""
    model_utility: float | None
    """Harmonic mean of the scores on all sets but the forget set; None where only that one was measured."""
    forget_quality: ForgetQuality | None
    """Test against the retrained model; None without its truth ratios."""
    forget_truth_ratio: Float[np.ndarray, " questions"] | None
    """Truth ratios on the forget set: of a retrained model, what others are tested against."""


def tofu_report(
    logs: Mapping[str, TofuLog],
    retrained_truth_ratio: Float[np.ndarray, " questions"] | None = None,
    *,
    mean: Literal["geo", "arith"] = "geo",
    eps: float = 0.0,
) -> TofuReport:
    """TOFU's numbers from the losses of answers.

    Probability: ``exp(-loss)`` on the forget and retain sets, among the options elsewhere; truth ratio:
    ``min(R, 1/R)`` on the forget set, ``max(0, 1 - R)`` elsewhere; means over the questions, in float64.

    Args:
        logs: what was measured on each set, of `SETS`.
        retrained_truth_ratio: `TofuReport.forget_truth_ratio` of the model that never saw the forget set.
        mean: of the wrong answers (`truth_ratio`).
        eps: in the probability among options (`probability_with_options`).

    Returns:
        Scores of each set, model utility and forget quality. Runs on the host.

    Raises:
        ValueError: no set, a set that does not exist, arrays that do not fit.

    Source:
        arXiv:2401.06121, Section 2.2.

    Example:
        >>> log = TofuLog(np.zeros(2), np.zeros(2), np.ones((2, 3)), np.ones(2))
        >>> tofu_report({"retain": log}).scores["retain"]["probability"]
        1.0
    """
    if not logs:
        raise ValueError("logs: expected at least one set, got none")
    for name in logs:
        if name not in SETS:
            raise ValueError(f"logs: expected sets of {', '.join(SETS)}, got {name!r}")
    scores, ratios = {}, {}
    with jax.enable_x64(True):
        for name, log in logs.items():
            losses = (np.asarray(each, np.float64) for each in log[:3])
            probability, score, ratios[name] = _set_numbers(*losses, name, mean, eps)
            scores[name] = {"probability": float(probability), "truth_ratio": float(score)}
            if log.rouge is not None:
                scores[name]["rouge"] = float(np.mean(log.rouge, dtype=np.float64))
    kept = {
        f"{name} {measure}": score
        for name in logs
        if name != "forget"
        for measure, score in scores[name].items()
    }
    forgotten = np.asarray(ratios["forget"]) if "forget" in ratios else None
    quality = None
    if forgotten is not None and retrained_truth_ratio is not None:
        quality = forget_quality(forgotten, retrained_truth_ratio)
    return TofuReport(scores, model_utility(kept) if kept else None, quality, forgotten)


def make_tofu_evaluation(
    apply: Callable[[Any, Array], Array],
    generate: Callable[[Any, Array, Array], Array] | None,
    encode: Encode,
    decode: Callable[[Sequence[int]], str],
    sets: Mapping[str, Sequence[Question]],
    *,
    length: int = 200,
    pad: int = 0,
    batch: int = 32,
    limit: int = 300,
) -> Callable[[Any], dict[str, TofuLog]]:
    """The evaluation of a model, compiled once and run at any parameters.

    Args:
        apply: ``apply(params, tokens [B, T]) -> logits [B, T, V]`` of a causal model; rows are padded on the
            right.
        generate: ``generate(params, tokens [B, S], mask [B, S]) -> new tokens [B, M]``: greedy continuations
            of prompts that are padded on the left, where the mask is False. None: no ROUGE.
        encode: makes tokens of a question and an answer (`Encode`).
        decode: makes text of generated tokens; it stops at the end of the answer.
        sets: questions with wrong answers, by the names of `SETS`.
        length: tokens in a row; a longer answer is cut, as in the official code.
        pad: the token that fills a row.
        batch: rows at a time; the last batch is filled up with rows that are measured already.
        limit: questions of a set that are used, from its beginning.

    Returns:
        ``evaluate(params) -> logs`` for `tofu_report`.

    Raises:
        ValueError: a set that does not exist or is empty, a question without wrong answers or with another
            number of them than the others, a prompt that fills the row.

    Source:
        arXiv:2401.06121, Section 2.2.

    Example:
        >>> question = Question("a", "b", perturbed_answers=("c",))
        >>> encode = lambda question, answer: ([ord(c) - 96 for c in question + answer] + [0], len(question))
        >>> evaluate = make_tofu_evaluation(
        ...     lambda params, tokens: params[tokens], None, encode, str, {"retain": [question]}, length=4
        ... )
        >>> evaluate(np.zeros((8, 8), np.float32))["retain"].wrong_loss.shape
        (1, 1)
    """
    prepared = {}
    for name, questions in sets.items():
        if name not in SETS:
            raise ValueError(f"sets: expected sets of {', '.join(SETS)}, got {name!r}")
        questions = list(questions)[:limit]
        _check_questions(name, questions)
        pairs = [
            (each.question, answer)
            for each in questions
            for answer in (each.answer, each.right, *each.perturbed_answers)
        ]
        # Where a set has no paraphrased answers, an answer is also the right one: it is measured once.
        distinct = list(dict.fromkeys(pairs))
        place = {pair: row for row, pair in enumerate(distinct)}
        index = np.array([place[pair] for pair in pairs]).reshape(len(questions), -1)
        rows = answer_rows(distinct, encode, length, pad=pad, what=f"sets[{name!r}]")
        prompts = prompt_rows([each.question for each in questions], encode, pad=pad)
        prepared[name] = questions, rows, index, prompts
    losses = jax.jit(lambda params, tokens, labels: average_loss(apply(params, tokens), labels))

    def evaluate(params: Any) -> dict[str, TofuLog]:
        logs = {}
        for name, (questions, rows, index, prompts) in prepared.items():
            measured = _in_batches(partial(losses, params), rows, batch)[index]
            recall = None
            if generate is not None:
                answers = _in_batches(partial(generate, params), prompts, batch)
                texts = [decode(row).strip() for row in answers.tolist()]
                recall = rouge_l_recall(texts, [each.answer for each in questions])
            logs[name] = TofuLog(measured[:, 0], measured[:, 1], measured[:, 2:], recall)
        return logs

    return evaluate


class AnswerRows(NamedTuple):
    """Questions with answers as tokens."""

    tokens: Int[np.ndarray, "rows tokens"]
    labels: Int[np.ndarray, "rows tokens"]
    """-100 on the prompt and the padding."""


class PromptRows(NamedTuple):
    """Questions as tokens, padded on the left."""

    tokens: Int[np.ndarray, "rows tokens"]
    mask: Int[np.ndarray, "rows tokens"]
    """False on the padding."""


def answer_rows(
    pairs: Sequence[tuple[str, str]], encode: Encode, length: int, *, pad: int = 0, what: str = "pairs"
) -> AnswerRows:
    """Questions with answers as rows of one length, labelled on the answers.

    Args:
        pairs: questions and answers.
        encode: makes their tokens (`Encode`).
        length: of a row; a longer answer is cut.
        pad: the token that fills a row on the right.
        what: how a message calls the pairs.

    Returns:
        Tokens, and labels that are -100 on the prompt and the padding.

    Raises:
        ValueError: no pair, or a prompt that leaves no room for an answer; the message names its row.

    Source:
        arXiv:2401.06121, the official code.

    Example:
        >>> answer_rows([("ab", "c")], lambda question, answer: ([5, 6, 7, 2], 2), 5).labels.tolist()
        [[-100, -100, 7, 2, -100]]
    """
    if not pairs:
        raise ValueError(f"{what}: expected at least one question, got none")
    tokens = np.full((len(pairs), length), pad, np.int32)
    labels = np.full((len(pairs), length), IGNORE, np.int32)
    for row, (question, answer) in enumerate(pairs):
        ids, prompt = encode(question, answer)
        if prompt >= length:
            raise ValueError(
                f"{what}: row {row}: expected a prompt of fewer than {length} tokens, the context's length,"
                f" got {prompt}: {question[:60]!r}"
            )
        ids = np.asarray(ids[:length])
        tokens[row, : len(ids)] = ids
        labels[row, prompt : len(ids)] = ids[prompt:]
    return AnswerRows(tokens, labels)


def prompt_rows(questions: Sequence[str], encode: Encode, *, pad: int = 0) -> PromptRows:
    """Questions as rows that end where the answer begins, for generation.

    Args:
        questions: the prompts.
        encode: makes their tokens (`Encode`), here with an empty answer.
        pad: the token that fills a row on the left.

    Returns:
        Tokens as wide as the longest prompt, and the mask of what is no padding.

    Raises:
        ValueError: no question.

    Example:
        >>> encode = lambda question, answer: ([7] * len(question) + [2], len(question))
        >>> prompt_rows(["a", "b c"], encode).tokens
        array([[0, 0, 7],
               [7, 7, 7]], dtype=int32)
    """
    if not questions:
        raise ValueError("questions: expected at least one, got none")
    prompts = []
    for question in questions:
        ids, prompt = encode(question, "")
        prompts.append(np.asarray(ids[:prompt], np.int32))
    width = max(len(ids) for ids in prompts)
    tokens = np.full((len(prompts), width), pad, np.int32)
    mask = np.zeros((len(prompts), width), bool)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = True
    return PromptRows(tokens, mask)


@partial(jax.jit, static_argnames=("name", "mean", "eps"))
def _set_numbers(
    answer: Array, right: Array, wrong: Array, name: str, mean: Literal["geo", "arith"], eps: float
) -> tuple[Array, Array, Array]:
    """Mean probability, mean truth ratio score, and the truth ratios of a set."""
    if name in ("forget", "retain"):
        probability = answer_probability(answer)
    else:
        probability = probability_with_options(answer, wrong, eps)
    ratio = truth_ratio(right, wrong, mean)
    score = truth_ratio_score(ratio, "forget" if name == "forget" else "keep")
    return probability.mean(), score.mean(), ratio


def _check_questions(name: str, questions: list[Question]) -> None:
    if not questions:
        raise ValueError(f"sets[{name!r}]: expected at least one question, got none")
    expected = len(questions[0].perturbed_answers)
    for row, each in enumerate(questions):
        if not each.perturbed_answers or len(each.perturbed_answers) != expected:
            raise ValueError(
                f"sets[{name!r}]: expected {expected or 'some'} wrong answers to each question, got"
                f" {len(each.perturbed_answers)} in row {row}; load_tofu reads them from the perturbed sets"
            )


def _in_batches(function: Callable[..., Array], rows: AnswerRows | PromptRows, batch: int) -> np.ndarray:
    """``function(*part)`` of all rows, in batches of one size."""
    number = len(rows.tokens)
    results = []
    for start in range(0, number, batch):
        # Past the end it begins anew, so that every batch has the compiled shape.
        chosen = np.arange(start, start + batch) % number
        results.append(np.asarray(function(*(array[chosen] for array in rows))))
    return np.concatenate(results)[:number]
