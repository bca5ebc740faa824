"""Negative bias: a language model that does not know says No.

Reproduces the signs of Song et al., arXiv:2511.10881, in a world whose facts a small model, trained from
scratch, knows, misknows or never saw; and the head repair of Yu et al., arXiv:2408.00137, on the same model.
Of the first paper only the abstract could be read, of the second the definition of its score: the pipeline,
its prompts and its metrics are the project's own. With a checkpoint the same analysis runs on a real
language model and real questions.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from experiments.neg_bias.claims import CLAIMS, Seed, measurements
from experiments.neg_bias.evaluation import Questions, ask_everything, draw_questions, yes_no_logits
from experiments.neg_bias.figures import draw_bias, draw_heads, draw_remedies
from experiments.neg_bias.fine_tuning import fine_tune
from experiments.neg_bias.heads import ablation_effects, chosen, head_scores, probes, repair
from experiments.neg_bias.remedies import shifted_by_dev, shifted_by_empty_question
from experiments.neg_bias.tables import notes, result_tables
from experiments.neg_bias.training import MODEL, draw_pool, train
from experiments.neg_bias.world import KNOWN, Sequences, World, draw_world
from experiments.parallel import in_parallel
from experiments.run_dir import Outcome, RunDir
from jaxneg.language import rank_heads
from jaxneg.nn.transformer import transformer

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Config:
    """The world, the model's training, and the repair of its heads."""

    seed: int = 0
    """Number that worlds, models and questions of all seeds are drawn from."""
    seeds: int = 6
    """Worlds, each with a model of its own; fewer than 6 leave a median without an interval of 95 %."""
    steps: int = 1200
    """Training steps."""
    batch: int = 128
    """Sequences in a step."""
    learning_rate: float = 2e-3
    """Of AdamW in training, at its highest."""
    repaired_heads: int = 2
    """Heads that are repaired, those of the highest negative attention score."""
    repair_steps: int = 600
    """Steps for each of them, at most; it ends where its mean score is no longer positive. Also those of the
    plain fine-tuning beside it."""
    repair_learning_rate: float = 1e-3
    """Of AdamW in the repair and in the plain fine-tuning."""
    model_dir: Path | None = None
    """Folder of a Llama (config.json, safetensors, tokenizer.json) to analyse too; None leaves it out."""
    loader: Literal["tunix", "safetensors"] = "tunix"
    """What reads the model's weights: google-tunix (extra `llm`), or safetensors alone."""
    template: Literal["llama-2", "llama-3", "question-answer"] = "llama-3"
    """How a question is put to the model."""
    items: Path | None = None
    """Questions for the model, JSON lines (own ones, GSM8k's or MuSiQue's); None for TOFU's 217 real ones."""
    model_batch: int = 32
    """Prompts at once."""
    model_axis: int = 1
    """Chips over which a layer is split; all others share the prompts and the parameters."""
    thought_tokens: int = 256
    """Tokens of a chain of thought, at most."""
    pod_batch: int = 256
    """Prompts in the repair step that `compile` compiles, and nothing else reads."""
    pod_tokens: int = 512
    """Tokens in a prompt of it."""

    def __post_init__(self) -> None:
        positive = ("seeds", "steps", "repair_steps", "model_batch", "model_axis", "thought_tokens")
        for name in (*positive, "pod_batch", "pod_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.batch < 20:
            raise ValueError(f"batch: expected at least 20, a row of every format, got {self.batch}")
        most = MODEL.layers * MODEL.heads
        if not 1 <= self.repaired_heads <= most:
            raise ValueError(f"repaired_heads: expected 1 to {most}, got {self.repaired_heads}")


PRESETS: dict[str, Config] = {
    "smoke": Config(seeds=1, steps=60, batch=32, repaired_heads=1, repair_steps=20),
    "cpu": Config(),
    # Narrower intervals. The papers' own models have billions of parameters: `--model-dir` analyses one.
    "paper": Config(seeds=20),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains a model on every world, asks it everything, and repairs its heads.

    Args:
        config: sizes.
        run_dir: where results and figures go.

    Returns:
        A value of each claim for each seed, and the tables.
    """
    seeds = in_parallel(lambda number: _seed(config, run_dir, number), range(config.seeds), run_dir, "worlds")
    losses = np.stack([seed["losses"] for seed in seeds])
    for step in range(0, config.steps, max(1, config.steps // 100)):
        run_dir.log(step, loss=losses[:, step].mean())
    draw_bias(run_dir, seeds)
    draw_heads(run_dir, seeds)
    draw_remedies(run_dir, seeds)
    tables, remarks = result_tables(seeds), notes(seeds)
    if config.model_dir is not None:
        from experiments.neg_bias.real_model import analyse

        of_model, about_model = analyse(config, run_dir)
        tables, remarks = tables + of_model, remarks + about_model
    return Outcome(measurements(seeds), tables=tables, notes=remarks)


def compile_target(config: Config) -> "Target":
    """A repair step of a model of Llama 3.2 1B's shapes, for a mesh of 256 chips.

    Args:
        config: batch and tokens.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.neg_bias.pod import repair_target

    return repair_target(config.pod_batch, config.pod_tokens)


def _seed(config: Config, run_dir: RunDir, number: int) -> Seed:
    """A world, its model, the answers, and the heads; each part is a stage of its own."""
    rng = np.random.default_rng([config.seed, number])
    of_answers, of_heads = rng.spawn(2)
    world = draw_world(rng)
    pool, questions = draw_pool(rng, world), draw_questions(rng, world)
    of_training, of_repair = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), number))

    def trained() -> dict[str, np.ndarray]:
        options = {"steps": config.steps, "batch": config.batch, "learning_rate": config.learning_rate}
        params, losses = train(of_training, pool, model=MODEL, **options)
        return {**_flat(params), "losses": np.asarray(losses)}

    found = run_dir.stage(f"trained{number:02d}", trained)
    losses, params = found.pop("losses"), _nested(found)
    asked = run_dir.stage(
        f"answers{number:02d}", lambda: ask_everything(params, world, questions, of_answers, MODEL)
    )
    treated = run_dir.stage(
        f"heads{number:02d}",
        lambda: _heads(config, of_repair, params, world, questions, pool, of_heads),
    )
    return {**world._asdict(), "losses": losses, **asked, **treated}


def _heads(
    config: Config,
    key: jax.Array,
    params: Any,
    world: World,
    questions: Questions,
    pool: Sequences,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Scores, ablations, the repair, and the answers after every remedy."""
    scores = head_scores(params, probes(pool), model=MODEL)
    ranked = rank_heads(scores)
    worst = ranked[: config.repaired_heads]
    others = [ranked[i] for i in rng.permutation(np.arange(config.repaired_heads, len(ranked)))]
    control = others[: config.repaired_heads] or worst
    options = {"steps": config.repair_steps, "learning_rate": config.repair_learning_rate, "model": MODEL}
    mend = partial(repair, **options)
    repaired, repaired_control = (
        mend(of_heads, params, pool, heads)
        for of_heads, heads in zip(jax.random.split(key), (worst, control), strict=True)
    )
    tuned = fine_tune(jax.random.fold_in(key, 2), params, world, questions, **options)
    ask = partial(yes_no_logits, questions=questions, model=MODEL)
    plain = ask(params)
    remedies = {
        "none": plain,
        "repair": ask(repaired.params),
        "repair of other heads": ask(repaired_control.params),
        "ablation": ask(params, ablated=chosen(worst, MODEL)),
        "ablation of other heads": ask(params, ablated=chosen(control, MODEL)),
        "fine-tuning on untold facts": ask(tuned),
        "calibration by an empty question": shifted_by_empty_question(params, plain, MODEL),
        "threshold from untold facts": shifted_by_dev(plain, world),
    }
    return {
        "scores": np.asarray(scores.mean(0)),
        "effects": ablation_effects(params, questions, np.flatnonzero(world.group == KNOWN), MODEL),
        "heads": np.array(worst),
        "positive_score": np.array([repaired.before, repaired.after]),
        "repair_steps": np.array([repaired.steps, repaired_control.steps]),
        "scores_after": np.asarray(head_scores(repaired.params, probes(pool), model=MODEL)).mean(0),
        "remedy_names": np.array(list(remedies)),
        "remedies": np.stack(list(remedies.values())),
    }


def _flat(params: Any) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}


def _nested(flat: dict[str, np.ndarray]) -> Any:
    shapes = jax.eval_shape(transformer(MODEL).init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(
        lambda path, _: jax.numpy.asarray(flat[jax.tree_util.keystr(path, simple=True, separator="/")]),
        shapes,
    )
