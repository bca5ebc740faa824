"""TOFU: unlearning fictitious authors with NPO and its rivals, on real questions.

Reproduces the comparison of Zhang et al., arXiv:2404.05868, Section 5, on the data of Maini et al.,
arXiv:2401.06121, at a size for two cores (`training`): a small transformer that was trained from scratch
learns twelve of TOFU's authors and unlearns four. Forget quality and utility are followed along the whole
way, since forget quality rises and falls.

With `--model-dir` the same methods unlearn TOFU from a real model (`real_model`), such as those that
open-unlearning publishes; `pod` is that step on chips that are not there.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np

from experiments.parallel import in_parallel
from experiments.run_dir import Outcome, RunDir
from experiments.tofu.claims import CLAIMED, CLAIMS, measurements
from experiments.tofu.data import TINY, load_corpus
from experiments.tofu.figures import RATIOS_SHOWN, Course, draw_courses, draw_ratios, draw_way
from experiments.tofu.metrics import Scores, forget_ratios, score
from experiments.tofu.tables import course_table, end_table
from experiments.tofu.training import ANSWER, METHODS, Lab, Sizes

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]

MAIN = ("GA", "GA+RT", "NPO", "NPO+RT", "NPO+RT, β = 0.03", "SimNPO+RT", "IDK+RT")
"""The methods of the independent prototype."""


@dataclass(frozen=True)
class Config:
    """TOFU with a small model trained from scratch; and with a real one, if there is one."""

    seed: int = 0
    """Number that all seeds are drawn from."""
    seeds: int = 6
    """Models trained; 6 are the fewest that give a median an interval of 95 %."""
    forget_authors: int = 4
    """Authors to be forgotten, 20 questions each."""
    retain_authors: int = 8
    """Authors to be kept."""
    width: int = 96
    """Width of the transformer, a multiple of 8."""
    layers: int = 2
    """Its blocks."""
    heads: int = 4
    """Its attention heads."""
    length: int = 80
    """Tokens in a row; longer answers are cut."""
    epochs: int = 30
    """Epochs of fine-tuning."""
    batch: int = 20
    """Forget rows in a batch of unlearning, and as many retain rows; rows in one of fine-tuning."""
    evaluate_at: tuple[int, ...] = (10, 20, 40)
    """Steps of unlearning after which a model is evaluated; the last one ends it."""
    methods: tuple[str, ...] = MAIN
    """What unlearns; GA, GA+RT and NPO+RT must be among them."""
    model_dir: Path | None = None
    """Folder of a model that knows TOFU (config.json, safetensors, tokenizer.json); None leaves it out."""
    retrained_dir: Path | None = None
    """Folder of the model that was retrained without the forget split; None: no forget quality."""
    loader: Literal["tunix", "safetensors"] = "tunix"
    """What reads the model's weights: google-tunix (extra `llm`), or safetensors alone."""
    template: Literal["llama-2", "llama-3", "question-answer"] = "llama-3"
    """How a question is put to the model."""
    split: Literal["forget01", "forget05", "forget10", "forget20", "forget30", "forget50", "forget90"] = (
        "forget10"
    )
    """What the model is to forget."""
    model_methods: tuple[str, ...] = ("NPO+RT",)
    """What unlearns from the model, one after the other; KL, DPO and KTO ask the reference in every step and
    need adapters."""
    model_epochs: int = 10
    """Epochs over the split; the first one warms up."""
    model_batch: int = 32
    """Forget rows in a batch, and as many retain rows."""
    model_tokens: int = 512
    """Tokens in a row."""
    fixed_pairing: bool = False
    """Whether a forget row meets the same retain row and refusal in every epoch."""
    learning_rate: float = 1e-5
    """Of AdamW, 1e-4 for adapters."""
    lora_rank: int = 0
    """Rank of the adapters that are trained in place of the model; 0 trains the model."""
    model_axis: int = 1
    """Chips over which a layer is split; all others share the rows and the parameters."""
    compile_model: Literal["llama-2-7b", "llama-3.2-1b"] = "llama-2-7b"
    """What `compile` compiles, with the batch, the tokens and the rank above."""

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "batch", "model_epochs", "model_batch", "model_axis"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("forget_authors", "retain_authors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        at = self.evaluate_at
        if not at or at[0] < 1 or list(at) != sorted(set(at)):
            raise ValueError(f"evaluate_at: expected positive numbers in rising order, got {at}")
        if self.lora_rank < 0:
            raise ValueError(f"lora_rank: expected at least 0, got {self.lora_rank}")
        for field in ("methods", "model_methods"):
            if unknown := [name for name in getattr(self, field) if name not in METHODS]:
                raise ValueError(f"{field}: expected some of {', '.join(METHODS)}, got {unknown[0]!r}")
        if missing := [name for name in CLAIMED if name not in self.methods]:
            raise ValueError(f"methods: expected {missing[0]!r} among them, got {self.methods}")


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=1,
        forget_authors=1,
        retain_authors=1,
        width=32,
        layers=1,
        epochs=4,
        evaluate_at=(2, 4),
        methods=CLAIMED,
    ),
    "cpu": Config(),
    # More seeds, evaluations and methods; the papers' models have billions of parameters: `--model-dir`.
    "paper": Config(seeds=12, evaluate_at=tuple(range(5, 41, 5)), methods=tuple(METHODS)),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains, unlearns and evaluates; all seeds of the small model, then the real one.

    Args:
        config: sizes.
        run_dir: where stages, figures and metrics go.

    Returns:
        A value of each claim for each seed, and the tables.
    """
    corpus = load_corpus(config.forget_authors, config.retain_authors)
    lab = Lab(
        corpus,
        Sizes(
            config.width,
            config.layers,
            config.heads,
            config.length,
            config.epochs,
            config.batch,
            config.evaluate_at,
        ),
    )
    keys = list(jax.random.split(jax.random.key(config.seed), config.seeds))
    seeds = in_parallel(partial(_seed, lab, config.methods, run_dir), list(enumerate(keys)), run_dir, "seeds")
    forget = len(corpus.forget)
    aims = [forget_ratios(seed["retrained"], forget) for seed in seeds]

    def scores(name: str) -> Course:
        return [
            [score(losses, lab.lengths, forget, aim) for losses in (seed["full"], *seed.get(name, ()))]
            for seed, aim in zip(seeds, aims, strict=True)
        ]

    courses = {name: scores(name) for name in config.methods}
    before = [course[0] for course in courses[config.methods[0]]]
    retrained = [
        score(seed["retrained"], lab.lengths, forget, aim) for seed, aim in zip(seeds, aims, strict=True)
    ]
    steps = np.array([0, *config.evaluate_at])
    _log(run_dir, steps, courses)
    draw_way(run_dir, courses, retrained)
    draw_courses(run_dir, steps, courses)
    draw_ratios(run_dir, _pooled_ratios(seeds, forget, config.methods))
    tables = [end_table(before, retrained, courses), course_table(steps, courses)]
    notes = [
        f"Questions about {config.forget_authors} authors to forget and {config.retain_authors} to keep, from"
        f" {'the part of TOFU beside the code' if corpus.folder == TINY else corpus.folder}.",
        "A model this small knows neither real authors nor world facts and is not asked: its utility is the"
        " harmonic mean of two of TOFU's nine numbers.",
        _beta_rule(lab, seeds),
        "Forget quality cannot tell refusals from forgetting: IDK's is no merit. It also rises and falls"
        " along the way, so that the best step says less than the whole curve.",
    ]
    if config.model_dir is not None:
        from experiments.tofu.real_model import unlearn_model

        more_tables, more_notes = unlearn_model(config, run_dir)
        tables, notes = tables + more_tables, notes + more_notes
    return Outcome(measurements(before, courses), tables, notes)


def compile_target(config: Config) -> "Target":
    """The NPO+RT step of a Llama on TOFU, for a mesh of 256 chips: the small model fills no chip.

    Args:
        config: model, batch, tokens, rank of the adapters.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.tofu.pod import unlearning_target

    return unlearning_target(
        config.compile_model, config.model_batch, config.model_tokens, config.lora_rank, config.learning_rate
    )


def _seed(
    lab: Lab, methods: tuple[str, ...], run_dir: RunDir, item: tuple[int, jax.Array]
) -> dict[str, np.ndarray]:
    """The losses of a seed's models and of every method. Each is a stage, so that a run that died goes on."""
    number, key = item
    learning, unlearning = jax.random.split(key)

    def learnt() -> dict[str, np.ndarray]:
        full, retrained = (lab.fine_tune(learning, forget_too=forget_too) for forget_too in (True, False))
        leaves = {f"params{i:03d}": leaf for i, leaf in enumerate(jax.tree.leaves(full))}
        return {"full": lab.losses(full), "retrained": lab.losses(retrained), **leaves}

    found = run_dir.stage(f"seed{number:02d}_models", learnt)
    structure = jax.tree.structure(jax.eval_shape(lab.init, key))
    params = jax.tree.unflatten(structure, [found[name] for name in sorted(found) if name[:6] == "params"])
    losses = {name: found[name] for name in ("full", "retrained")}
    for name in methods:
        stage = f"seed{number:02d}_{list(METHODS).index(name):02d}"
        losses[name] = run_dir.stage(stage, lambda name=name: lab.unlearn(unlearning, params, name)[0])[
            "losses"
        ]
    return losses


def _pooled_ratios(
    seeds: list[dict[str, np.ndarray]], forget: int, methods: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """Truth ratios on the forget set of all seeds, at the end."""
    pooled = {"before": "full", "retrained": "retrained"} | {
        name: name for name in RATIOS_SHOWN if name in methods
    }
    return {
        label: np.concatenate(
            [forget_ratios(seed[name] if seed[name].ndim == 2 else seed[name][-1], forget) for seed in seeds]
        )
        for label, name in pooled.items()
    }


def _beta_rule(lab: Lab, seeds: list[dict[str, np.ndarray]]) -> str:
    """How far NPO's weight has faded where the retrained model is."""
    forget = len(lab.corpus.forget)
    count = lab.lengths[:forget, ANSWER]
    gaps = [np.median((seed["retrained"] - seed["full"])[:forget, ANSWER] * count) for seed in seeds]
    gap = float(np.median(gaps))
    return (
        f"To the retrained model a forget answer is {gap:.0f} nats less likely than before unlearning"
        f" (median). At β = 0.1 that is β ΔS = {0.1 * gap:.1f}, where NPO's weight, 2 at most,"
        f" is {2 / (1 + np.exp(0.1 * gap)):.1g}. As a rule β ΔS should be 5 to 10: here β from"
        f" {5 / gap:.2g} to {10 / gap:.2g}."
    )


def _log(run_dir: RunDir, steps: np.ndarray, courses: dict[str, Course]) -> None:
    """The medians over seeds."""
    for index, step in enumerate(steps):
        medians = {
            f"{field}/{name}": np.median([getattr(seed[index], field) for seed in course])
            for name, course in courses.items()
            for field in Scores._fields
        }
        run_dir.log(int(step), **medians)
