"""Training a student in every way that is compared, with the judge and the negatives of earlier students."""

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from jaxneg.language import (
    QCRDConfig,
    SnapshotBuffer,
    corrupt_rationales,
    discriminator_loss,
    dss_loss,
    init_qcrd,
    make_qcrd_step,
    sample_rationales,
    token_mean_ce,
)
from jaxneg.nn import EncoderDecoderConfig, encoder_decoder, rationale_judge
from jaxneg.train import Checkpoints, init_state, make_step

Arm = Literal["finetune", "dss", "ed", "nk", "qcrd"]
ARMS: tuple[Arm, ...] = ("finetune", "dss", "ed", "nk", "qcrd")
"""Labels alone; and one rationale as it is (distilling-step-by-step); several that agree with the majority;
and negatives; and the judge."""
NAMES = {"finetune": "finetune", "dss": "DSS", "ed": "+ED", "nk": "+ED +NK", "qcrd": "QCRD"}
WITH_NEGATIVES: tuple[Arm, ...] = ("nk", "qcrd")


@dataclass(frozen=True)
class Recipe:
    """Sizes and choices of a training, the same for every arm; hashable, as programs are kept by it."""

    vocab: int
    question_length: int
    label_length: int
    rationale_length: int
    eos: int
    pad: int
    separator: int
    mask: int
    width: int = 128
    layers: int = 2
    heads: int = 4
    hidden: int = 512
    batch: int = 64
    steps: int = 3000
    learning_rate: float = 1e-3
    warmup: int = 100
    refresh: int = 150
    back: int = 5
    temperature: float = 1.5
    judge_steps: int = 50
    judge_pretraining: int = 500
    corruption: float = 0.3
    beta: float = 0.2
    delta: float = 3.0
    history: Literal["memory", "checkpoints"] = "memory"


class Corpus(NamedTuple):
    """Questions with everything that an arm may learn from them; padding is the recipe's."""

    question: np.ndarray
    """``[Q, S]``, without a prefix."""
    predict: np.ndarray
    explain: np.ndarray
    label: np.ndarray
    """``[Q, L]``."""
    pos: np.ndarray
    """``[Q, m, T]``; of distilling-step-by-step one rationale of each question."""
    pos_valid: np.ndarray


class Course(NamedTuple):
    """What an arm ended with."""

    student: Any
    judge: Any
    negatives: np.ndarray
    """The last negatives ``[Q, T]``; with no rows where the arm has none."""
    metrics: dict[str, np.ndarray]
    """By name, a value for each step."""
    valid_negatives: np.ndarray
    """For each iteration, the share of negatives that are right."""


class History(Protocol):
    """Earlier versions of a student: `jaxneg.language.SnapshotBuffer`, or `CheckpointHistory`."""

    def push(self, params: Any) -> None:
        """Keeps the version of a new iteration."""
        ...

    def earlier(self) -> Any:
        """The version of iteration ``max(0, n - j)``."""
        ...


class CheckpointHistory(contextlib.AbstractContextManager["CheckpointHistory"]):
    """Earlier versions of a student as checkpoints in a folder, of which the last j + 1 are kept.

    Args:
        folder: of the checkpoints.
        j: how many iterations back.
    """

    def __init__(self, folder: Path | str, j: int) -> None:
        self._checkpoints = Checkpoints(folder, keep=j + 1)
        self._j, self._like = j, None

    def push(self, params: Any) -> None:
        """Writes the checkpoint of a new iteration."""
        steps = self._checkpoints.steps
        self._like = params
        self._checkpoints.save(steps[-1] + 1 if steps else 0, params)

    def earlier(self) -> Any:
        """Reads the checkpoint of iteration ``max(0, n - j)``."""
        newest = self._checkpoints.steps[-1]
        return self._checkpoints.restore(self._like, step=max(0, newest - self._j)).state

    def __exit__(self, *error: object) -> None:
        self._checkpoints.close()


class Programs(NamedTuple):
    """Compiled functions of one recipe, which all seeds and arms share."""

    init: Callable[[PRNGKeyArray], Any]
    init_judge: Callable[[PRNGKeyArray], Any]
    train: Callable[..., tuple[Any, dict[str, Array]]]
    """``(state, data, index [R, B], arm) -> (state, metrics [R])``."""
    write: Callable[..., tuple[Array, Array]]
    """``(key, params, questions [Q, S], length, temperature) -> (tokens [Q, length], mask)``."""
    pretrain: Callable[..., tuple[Any, Array]]
    """``(key, judge, data, index [steps, B]) -> (judge, losses)``."""
    score: Callable[..., Array]
    """``(judge, questions [Q, S], rationales [Q, n, T], mask) -> scores [Q, n]``."""
    start: Callable[..., Any]
    """``(key, student, judge, arm) -> state``."""


def network(recipe: Recipe) -> EncoderDecoderConfig:
    """The student's sizes; the judge has its encoder's."""
    longest = max(recipe.question_length + 1 + recipe.rationale_length, recipe.label_length)
    return EncoderDecoderConfig(
        vocab=recipe.vocab,
        width=recipe.width,
        encoder_layers=recipe.layers,
        decoder_layers=recipe.layers,
        heads=recipe.heads,
        hidden=recipe.hidden,
        activation="relu",
        positions="learned",
        max_length=longest,
    )


@cache
def programs(recipe: Recipe) -> Programs:
    """The programs of a recipe; compiled when they are first called.

    Args:
        recipe: sizes and choices.

    Returns:
        The programs.
    """
    model, judge = encoder_decoder(network(recipe)), rationale_judge(network(recipe), recipe.separator)
    tx = optax.adam(schedule(recipe))
    judge_tx = optax.adam(recipe.learning_rate)
    cfg = QCRDConfig(
        beta=recipe.beta,
        delta=recipe.delta,
        refresh=recipe.refresh,
        judge_steps=recipe.judge_steps,
        start=recipe.pad,
    )

    def shifted(tokens: Array) -> Array:
        return jnp.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=recipe.pad)

    def task_loss(params: Any, batch: Mapping[str, Array], question: str, target: str) -> Array:
        states = model.encode(params, batch[question], batch[f"{question}_mask"])
        logits = model.decode(params, states, batch[f"{question}_mask"], shifted(batch[target]))
        return token_mean_ce(logits, batch[target], batch[f"{target}_mask"])

    def plain_loss(
        params: Any, batch: Mapping[str, Array], _key: Array, explain: bool
    ) -> tuple[Array, dict[str, Array]]:
        pred = task_loss(params, batch, "predict", "label")
        if not explain:
            return pred, {"pred_loss": pred}
        one = {**batch, "first": batch["pos"][:, 0], "first_mask": batch["pos_mask"][:, 0]}
        expl = task_loss(params, one, "explain", "first")
        return dss_loss(pred, expl), {"pred_loss": pred, "pos_ce": expl}

    judged = {"judge": judge.apply, "judge_tx": judge_tx}
    steps: dict[Arm, Callable[..., Any]] = {
        "finetune": make_step(partial(plain_loss, explain=False), tx),
        "dss": make_step(partial(plain_loss, explain=True), tx),
        "ed": make_qcrd_step(model.encode, model.decode, tx, cfg),
        "nk": make_qcrd_step(model.encode, model.decode, tx, cfg),
        "qcrd": make_qcrd_step(model.encode, model.decode, tx, cfg, **judged),
    }

    @partial(jax.jit, static_argnames="arm", donate_argnums=0)
    def train(state: Any, data: Mapping[str, Array], index: Array, arm: Arm) -> tuple[Any, dict[str, Array]]:
        def one(state: Any, rows: Array) -> tuple[Any, dict[str, Array]]:
            return steps[arm](state, {name: array[rows] for name, array in data.items()})

        return jax.lax.scan(one, state, index)

    @partial(jax.jit, static_argnames=("length", "temperature"))
    def write(
        key: Array, params: Any, questions: Array, length: int, temperature: float
    ) -> tuple[Array, Array]:
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
        mask = questions != recipe.pad
        states = model.encode(params, questions, mask)
        return sample_rationales(
            key,
            model.decode,
            params,
            (states, mask),
            temperature,
            length,
            cache=model.init_cache(params, states, length),
            eos=recipe.eos,
            pad=recipe.pad,
            start=recipe.pad,
        )

    def pretraining_loss(params: Any, batch: Mapping[str, Array], key: Array) -> tuple[Array, dict]:
        """Positives against the teacher's minority and against positives that were corrupted."""
        pos, mask, valid = batch["pos"], batch["pos_mask"], batch["pos_valid"]
        words = (mask & (pos != recipe.eos))[:, 0]
        bad = corrupt_rationales(key, pos[:, 0], words, recipe.mask, recipe.corruption)
        everything = jnp.concatenate([pos, bad[:, None], batch["minority"]], 1)
        masks = jnp.concatenate([mask, mask[:, :1], batch["minority_mask"]], 1)
        scores = judge.apply(params, batch["question"], batch["question_mask"], everything, masks)
        m = pos.shape[1]
        valid_neg = jnp.concatenate([valid[:, :1], batch["minority_valid"]], 1)
        return discriminator_loss(scores[:, :m], scores[:, m:], valid, valid_neg), {}

    judge_step = make_step(pretraining_loss, judge_tx)

    @jax.jit
    def pretrain(key: Array, params: Any, data: Mapping[str, Array], index: Array) -> tuple[Any, Array]:
        def one(state: Any, rows: Array) -> tuple[Any, Array]:
            state, metrics = judge_step(state, {name: array[rows] for name, array in data.items()})
            return state, metrics["loss"]

        state, losses = jax.lax.scan(one, init_state(params, judge_tx, key), index)
        return state.params, losses

    @jax.jit
    def score(params: Any, questions: Array, rationales: Array, mask: Array) -> Array:
        return judge.apply(params, questions, questions != recipe.pad, rationales, mask)

    def start(key: Array, student: Any, judge_params: Any, arm: Arm) -> Any:
        student = jax.tree.map(jnp.copy, student)  # the state is donated
        if arm in ("finetune", "dss"):
            return init_state(student, tx, key)
        if arm == "qcrd":
            return init_qcrd(key, student, tx, jax.tree.map(jnp.copy, judge_params), judge_tx)
        return init_qcrd(key, student, tx)

    return Programs(jax.jit(model.init), jax.jit(judge.init), train, write, pretrain, score, start)


def schedule(recipe: Recipe) -> optax.Schedule:
    """Linear warm-up, then a cosine to zero."""
    return optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, min(recipe.warmup, recipe.steps // 2), recipe.steps
    )


def arrays_of(corpus: Corpus, pad: int) -> dict[str, np.ndarray]:
    """The arrays of a batch with their masks, a row for each question; negatives come in later."""
    found = {}
    for name in ("question", "predict", "explain", "label", "pos"):
        tokens = getattr(corpus, name)
        found[name], found[f"{name}_mask"] = tokens, tokens != pad
    return {**found, "pos_valid": corpus.pos_valid}


def batches(seed: int, rows: int, recipe: Recipe) -> np.ndarray:
    """Which questions a step sees, ``[steps, batch]``: the same in every arm of a seed."""
    rng = np.random.default_rng((seed, 1))
    epochs = math.ceil(recipe.steps * recipe.batch / rows)
    order = np.concatenate([rng.permutation(rows) for _ in range(epochs)])
    return order[: recipe.steps * recipe.batch].reshape(recipe.steps, recipe.batch).astype(np.int32)


def train_judge(recipe: Recipe, seed: int, corpus: Corpus, minority: np.ndarray, valid: np.ndarray) -> Any:
    """The judge before there is a student.

    Args:
        recipe: sizes and choices.
        seed: of the run.
        corpus: questions and positives.
        minority: the teacher's rationales that disagree with its majority, ``[Q, n, T]``.
        valid: 1 where there is one.

    Returns:
        Its parameters.
    """
    made, key = programs(recipe), jax.random.fold_in(jax.random.key(seed), 2)
    data = {
        **arrays_of(corpus, recipe.pad),
        "minority": minority,
        "minority_mask": minority != recipe.pad,
        "minority_valid": valid,
    }
    read = ("question", "pos", "minority")
    data = {name: array for name, array in data.items() if name.startswith(read)}
    init_key, train_key = jax.random.split(key)
    params = made.init_judge(init_key)
    rng = np.random.default_rng((seed, 2))
    index = rng.integers(0, len(corpus.label), (recipe.judge_pretraining, recipe.batch), np.int32)
    return made.pretrain(train_key, params, data, index)[0] if recipe.judge_pretraining else params


def train_arm(
    recipe: Recipe,
    seed: int,
    arm: Arm,
    corpus: Corpus,
    judge: Any = None,
    valid_share: Callable[[np.ndarray], float] | None = None,
) -> Course:
    """Trains a student.

    Args:
        recipe: sizes and choices.
        seed: of the run; every arm of it begins with the same student and sees the same questions.
        arm: what it learns from.
        corpus: the questions.
        judge: parameters of the pretrained judge.
        valid_share: of negatives ``[Q, T]``, how many are right.

    Returns:
        What it ended with.
    """
    made, key = programs(recipe), jax.random.key(seed)
    student = made.init(jax.random.fold_in(key, 0))
    state = made.start(jax.random.fold_in(key, 1), student, judge, arm)
    read = ("predict", "label", *(() if arm == "finetune" else ("explain", "pos")))
    read = (*read, *(("question",) if arm == "qcrd" else ()))
    data: dict[str, Any] = {
        name: jnp.asarray(array)
        for name, array in arrays_of(corpus, recipe.pad).items()
        if name.startswith(read)
    }
    rows, length = len(corpus.label), recipe.rationale_length
    if arm == "ed":
        data |= _negatives(jnp.zeros((rows, 0, length), jnp.int32), jnp.zeros((rows, 0, length), bool))
    index = batches(seed, rows, recipe)
    periods = np.split(index, range(recipe.refresh, recipe.steps, recipe.refresh))
    negatives, shares, logged = np.zeros((0, length), np.int32), [], []
    with contextlib.ExitStack() as opened:
        history = _history(recipe, opened) if arm in WITH_NEGATIVES else None
        for number, period in enumerate(periods):
            if history is not None:
                history.push(state.params["student"])
                write_key = jax.random.fold_in(jax.random.fold_in(key, 3), number)
                tokens, mask = made.write(
                    write_key, history.earlier(), data["explain"], length, recipe.temperature
                )
                data |= _negatives(tokens[:, None], mask[:, None])
                negatives = np.asarray(tokens)
                shares.append(valid_share(negatives) if valid_share else math.nan)
            state, metrics = made.train(state, data, period, arm)
            logged.append(jax.device_get(metrics))
    params = state.params if arm in ("finetune", "dss") else state.params["student"]
    metrics = {name: np.concatenate([each[name] for each in logged]) for name in logged[0]}
    trained = state.params["judge"] if arm == "qcrd" else None
    return Course(params, trained, negatives, metrics, np.array(shares))


def _history(recipe: Recipe, opened: contextlib.ExitStack) -> History:
    if recipe.history == "memory":
        return SnapshotBuffer(recipe.back)
    folder = opened.enter_context(tempfile.TemporaryDirectory())
    return opened.enter_context(CheckpointHistory(folder, recipe.back))


def _negatives(tokens: Array, mask: Array) -> dict[str, Array]:
    return {"neg": tokens, "neg_mask": mask, "neg_valid": mask.any(-1)}
