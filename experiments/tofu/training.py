"""A language model that learns some authors, unlearns a part of them, and is asked about all.

The setting of Maini et al., arXiv:2401.06121, at a size for two cores: a causal transformer over words learns
questions and answers about fictitious authors ("full"), another one the retain authors alone ("retrained",
what unlearning aims at), and every method unlearns from the first.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments.tofu.data import Corpus
from experiments.tofu.vocabulary import PAD, Vocabulary
from jaxneg.nn import TransformerConfig, transformer
from jaxneg.train import init_state, make_step
from jaxneg.unlearning import (
    IGNORE,
    Question,
    UnlearnConfig,
    answer_lengths,
    answer_rows,
    draw_partners,
    make_unlearn_loss,
    precompute_reference,
    sequence_nll,
    token_mean_ce,
)
from jaxneg.unlearning.methods import reference_needs
from jaxneg.unlearning.tofu_evaluation import AnswerRows

LEARNING_RATE, UNLEARNING_RATE, WEIGHT_DECAY, WARM_UP = 3e-3, 1e-3, 0.01, 0.05
CHUNK, BUCKETS = 140, 4
"""Answers that are evaluated at once, and how many lengths they are cut to: most are far shorter than the
longest."""
ANSWER, PARAPHRASED, PERTURBED = 0, 1, slice(2, None)
"""Where the losses of a question's answers stand."""

METHODS: dict[str, UnlearnConfig] = {
    "GA": UnlearnConfig("ga"),
    "GA+RT": UnlearnConfig("ga+rt"),
    "NPO": UnlearnConfig("npo"),
    "NPO+RT": UnlearnConfig("npo+rt"),
    "NPO+RT, β = 0.03": UnlearnConfig("npo+rt", beta=0.03),
    "SimNPO+RT": UnlearnConfig("simnpo+rt", beta=2.5, gamma=0.1375),
    "IDK+RT": UnlearnConfig("idk+rt"),
    "GA+KL": UnlearnConfig("ga+kl"),
    "NPO+KL": UnlearnConfig("npo+kl"),
    "DPO+RT": UnlearnConfig("dpo+rt"),
    "KTO+RT": UnlearnConfig("kto+rt"),
}
"""By the names of tables; coefficients as the methods' authors publish them for TOFU."""


@dataclass(frozen=True)
class Sizes:
    """Of the model and its training."""

    width: int
    layers: int
    heads: int
    length: int
    """Tokens in a row."""
    epochs: int
    """Of fine-tuning."""
    batch: int
    """AnswerRows in a batch; in unlearning as many forget rows as retain rows."""
    evaluate_at: tuple[int, ...]
    """Steps of unlearning after which a model is evaluated, in order; the last one ends it."""


class Lab:
    """The data, and the programs that all seeds share.

    Args:
        corpus: questions about the authors.
        sizes: of the model and its training.

    Attributes:
        vocabulary: the words of the questions, answers and refusals.
        forget: rows of the forget authors.
        retain: rows of the others.
        lengths: tokens of each answer, ``[questions, answers]``, the forget set's questions first.
    """

    def __init__(self, corpus: Corpus, sizes: Sizes) -> None:
        self.corpus, self.sizes = corpus, sizes
        self.vocabulary = Vocabulary(corpus.texts())
        self.init, self.apply = transformer(
            TransformerConfig(
                self.vocabulary.size, sizes.width, sizes.layers, sizes.heads, hidden=sizes.width * 8 // 3
            )
        )
        self.forget = self._rows([(each.question, each.answer) for each in corpus.forget], "forget set")
        self.retain = self._rows([(each.question, each.answer) for each in corpus.retain], "retain set")
        questions = [*corpus.forget, *corpus.retain]
        asked = [(each.question, answer) for each in questions for answer in answers(each)]
        rows = self._rows(asked, "answers")
        self.lengths = np.asarray(answer_lengths(jnp.asarray(rows.labels))).reshape(len(questions), -1)
        self._order, self._buckets = bucketed(rows)
        self._fine_tuning = lru_cache(None)(self._fine_tuning_step)
        self._unlearning = lru_cache(None)(self._unlearning_step)
        self._sums = jax.jit(self._bucket_sums)

    def fine_tune(self, key: jax.Array, *, forget_too: bool) -> Any:
        """A model that learnt the authors.

        Args:
            key: random key.
            forget_too: whether it learns those that are to be forgotten.

        Returns:
            Its parameters.
        """
        parts = (self.forget, self.retain) if forget_too else (self.retain,)
        rows = AnswerRows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        init_key, order_key = jax.random.split(key)
        steps = self.sizes.epochs * (len(rows.tokens) // self.sizes.batch)
        tx, step = self._fine_tuning(steps)
        state = init_state(jax.jit(self.init)(init_key), tx, key)
        for index in epochs(order_key, len(rows.tokens), self.sizes.batch, steps):
            state, _ = step(state, _taken(rows, index))
        return state.params

    def losses(self, params: Any) -> Float[np.ndarray, "questions answers"]:
        """The average loss of every answer to every question.

        Args:
            params: of a model.

        Returns:
            Nats per token: of the answer, of the paraphrased answer, and of the wrong ones.
        """
        sums = [np.asarray(part).ravel() for part in self._sums(params, self._buckets)]
        by_row = np.empty(self.lengths.size)
        by_row[self._order] = np.concatenate(sums)[: self.lengths.size]
        return by_row.reshape(self.lengths.shape) / self.lengths

    def unlearn(self, key: jax.Array, params: Any, name: str) -> tuple[dict[str, np.ndarray], Any]:
        """Lets a model unlearn.

        Args:
            key: random key.
            params: of the model before, which is the reference too.
            name: one of `METHODS`.

        Returns:
            "losses" ``[evaluations, questions, answers]`` without the start, and the metrics of each step;
            and the parameters after the last one.
        """
        objective = METHODS[name]
        tx, step = self._unlearning(objective)
        state, found, metrics = init_state(params, tx, key), [], []
        for number, batch in enumerate(self._batches(key, params, objective), 1):
            state, of_step = step(state, params, batch)
            metrics.append(of_step)
            if number in self.sizes.evaluate_at:
                found.append(self.losses(state.params))
        curves = {metric: np.array([each[metric] for each in metrics]) for metric in metrics[0]}
        return {"losses": np.stack(found), **curves}, state.params

    def _rows(self, pairs: list[tuple[str, str]], what: str) -> AnswerRows:
        return answer_rows(pairs, self.vocabulary.encode, self.sizes.length, pad=PAD, what=what)

    def _batches(
        self, key: jax.Array, reference: Any, objective: UnlearnConfig
    ) -> Iterator[dict[str, dict[str, Any]]]:
        """Forget rows epoch by epoch, each with a retain row and a refusal that are drawn anew."""
        order_key, partner_key = jax.random.split(key)
        questions, refusals = self.corpus.forget, self.corpus.refusals
        whole: dict[str, Any] = {"forget": self.forget._asdict()}
        if asked_once(objective):
            whole = precompute_reference(jax.jit(self.apply), reference, whole, objective)
        in_epoch = len(questions) // self.sizes.batch
        steps = self.sizes.evaluate_at[-1]
        for step, index in enumerate(epochs(order_key, len(questions), self.sizes.batch, steps)):
            kept, refused = draw_partners(
                partner_key,
                jnp.asarray(index),
                step // in_epoch,
                n_retain=len(self.retain.tokens),
                n_refusals=len(refusals),
            )
            pairs = [
                (questions[row].question, refusals[number])
                for row, number in zip(index, refused, strict=True)
            ]
            yield {
                "forget": {name: array[index] for name, array in whole["forget"].items()},
                "retain": _taken(self.retain, np.asarray(kept)),
                "idk": self._rows(pairs, "refusals")._asdict(),
            }

    def _fine_tuning_step(self, steps: int) -> tuple[optax.GradientTransformation, Callable]:
        schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(1, int(WARM_UP * steps)), steps)
        tx = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)

        def loss(params: Any, batch: Any, key: jax.Array) -> tuple[Array, dict]:
            del key
            return token_mean_ce(self.apply(params, batch["tokens"]), batch["labels"]), {}

        return tx, jax.jit(make_step(loss, tx))

    def _unlearning_step(self, objective: UnlearnConfig) -> tuple[optax.GradientTransformation, Callable]:
        schedule = optax.linear_schedule(UNLEARNING_RATE, 0.0, self.sizes.evaluate_at[-1])
        tx = optax.adamw(schedule, weight_decay=WEIGHT_DECAY)
        step = make_step(make_unlearn_loss(self.apply, objective), tx)

        def with_reference(state: Any, reference: Any, batch: Any) -> Any:
            if not asked_once(objective):
                batch = precompute_reference(self.apply, reference, batch, objective)
            return step(state, batch)

        return tx, jax.jit(with_reference)

    def _bucket_sums(self, params: Any, buckets: tuple[AnswerRows, ...]) -> list[Float[Array, "chunks rows"]]:
        def of_chunk(chunk: Any) -> Array:
            return sequence_nll(self.apply(params, chunk.tokens), chunk.labels)[0]

        return [jax.lax.map(of_chunk, bucket) for bucket in buckets]


def answers(question: Question) -> list[str]:
    """All answers to a question whose losses are evaluated.

    Args:
        question: with a paraphrased answer and wrong ones.

    Returns:
        The answer, the paraphrased answer, and the wrong ones.
    """
    return [question.answer, question.right, *question.perturbed_answers]


def asked_once(objective: UnlearnConfig) -> bool:
    """Whether a number for each forget row is all that a method needs of the reference.

    Args:
        objective: the method.

    Returns:
        True where the reference is asked once for the data, and not in every step.

    Example:
        >>> [asked_once(UnlearnConfig(method)) for method in ("ga+rt", "npo+rt", "npo+kl")]
        [True, True, False]
    """
    return set(reference_needs(objective.method).items()) <= {("forget", "ref_seq_nll")}


def bucketed(rows: AnswerRows) -> tuple[Int[np.ndarray, " rows"], tuple[AnswerRows, ...]]:
    """AnswerRows in the order of their lengths, cut to a few of them.

    Args:
        rows: padded on the right.

    Returns:
        The rows' numbers in that order; and buckets of chunks, ``[chunks, CHUNK, tokens]``. Rows
        without labels fill the last chunk.
    """
    ends = (rows.labels != IGNORE).cumsum(1).argmax(1) + 1
    order = np.argsort(ends, kind="stable")
    fill = ((0, -len(order) % CHUNK), (0, 0))
    labels = np.pad(rows.labels[order], fill, constant_values=IGNORE).reshape(-1, CHUNK, rows.labels.shape[1])
    tokens = np.pad(rows.tokens[order], fill).reshape(labels.shape)
    buckets = []
    for chunks in np.array_split(np.arange(len(tokens)), min(BUCKETS, len(tokens))):
        last = int(np.argmax((labels[chunks] != IGNORE).any((0, 1)).cumsum())) + 1
        buckets.append(AnswerRows(tokens[chunks, :, :last], labels[chunks, :, :last]))
    return order, tuple(buckets)


def epochs(key: jax.Array, rows: int, batch: int, steps: int) -> Iterator[Int[np.ndarray, " batch"]]:
    """Row numbers of each step's batch: every epoch in a new order, its last rows left out if they fill none.

    Args:
        key: random key.
        rows: how many there are.
        batch: rows in a batch.
        steps: how many batches.

    Yields:
        Row numbers.

    Raises:
        ValueError: a batch larger than the rows.

    Example:
        >>> sorted(np.concatenate(list(epochs(jax.random.key(0), 6, 2, 3))).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    if batch > rows:
        raise ValueError(f"batch: expected at most the {rows} rows there are, got {batch}")
    order, in_epoch = np.arange(rows), rows // batch
    for step in range(steps):
        epoch, number = divmod(step, in_epoch)
        if number == 0:
            order = np.asarray(jax.random.permutation(jax.random.fold_in(key, epoch), rows))
        yield order[number * batch : (number + 1) * batch]


def _taken(rows: AnswerRows, index: Int[np.ndarray, " chosen"]) -> dict[str, np.ndarray]:
    return {name: array[index] for name, array in rows._asdict().items()}
