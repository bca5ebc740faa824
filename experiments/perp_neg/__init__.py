"""Perp-Neg: negative prompts that overlap with what is wanted, and the object with a face on every side.

Reproduces the effects of Armandpour et al., arXiv:2304.04968, where the truth is known: guidance with a
negative prompt that shares its concept with the main one (Section 4), and score distillation with
view-dependent negatives (Section 5), both on Gaussian mixtures with exact denoisers. The paper's own
experiments are Stable Diffusion's images and three-dimensional objects, judged by eye; `maxdiffusion` puts
the same functions into MaxDiffusion's SDXL and Flux.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np

from experiments.claims import mean_interval
from experiments.perp_neg.claims import CLAIMS, JANUS_REFERENCE, REFERENCE, accuracies, best, measurements
from experiments.perp_neg.figures import draw_circle, draw_samples, draw_schedules, draw_success
from experiments.perp_neg.janus import FRONT, Views, look, train
from experiments.perp_neg.overlap import DIM, Scores, Setting, all_settings, sample, score
from experiments.run_dir import Outcome, RunDir, Table

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Config:
    """Both experiments."""

    seed: int = 0
    """Number that the noise of all seeds is drawn from; the mixtures are fixed."""
    seeds: int = 5
    """Runs with noise of their own."""
    scale: float = 3.0
    """Guidance scale."""
    eps: float = 1e-6
    """Floor of the squared norm that Perp-Neg divides by."""
    weights: tuple[float, ...] = (0.25, 0.5, 0.6, 0.75, 1.0, 2.0, 3.0, 4.0, 6.0)
    """Weights of the negative prompt in the overlap experiment, subtracted; 1 and 2 among them, 6 at most."""
    samples: int = 500
    """Samples for each rule, weight and seed."""
    steps: int = 50
    """Steps of DDIM."""
    janus_steps: int = 600
    """Steps of score distillation in the toy Janus."""
    janus_batch: int = 64
    """Azimuths in a step."""
    janus_learning_rate: float = 0.02
    """Of Adam."""
    negative_w: float = -2.0
    """Weight of the negative prompts in the authors' schedule."""
    pod_batch: int = 64
    """Images in the sampling step that `compile` compiles, and nothing else reads; a multiple of 64."""

    def __post_init__(self) -> None:
        for name in ("seeds", "samples", "steps", "janus_steps", "janus_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if not {1.0, 2.0} <= set(self.weights) or not 0 < min(self.weights) <= max(self.weights) <= 6:
            raise ValueError(
                f"weights: expected positive numbers up to 6, with 1 and 2 among them, got {self.weights}"
            )
        if self.pod_batch < 1 or self.pod_batch % 64:
            raise ValueError(f"pod_batch: expected a positive multiple of 64, got {self.pod_batch}")


PRESETS: dict[str, Config] = {
    "smoke": Config(seeds=2, weights=(0.5, 1.0, 2.0, 6.0), samples=100, steps=20, janus_steps=80),
    "cpu": Config(),
    # Narrower intervals, and for `compile` four images a chip row. The paper's own scale is Stable Diffusion,
    # 100 seeds a prompt, judged by eye: experiments/perp_neg/maxdiffusion.py holds the loop bodies with which
    # MaxDiffusion's SDXL and Flux sample so.
    "paper": Config(seeds=20, pod_batch=256),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Samples with every rule and weight, trains every toy object.

    Args:
        config: sizes.
        run_dir: where results and figures go.

    Returns:
        A value of each claim for each seed, the tables of both experiments.
    """
    overlap_key, janus_key = jax.random.split(jax.random.key(config.seed))
    settings = all_settings(config.weights)

    def overlap() -> dict[str, np.ndarray]:
        starts = jax.random.normal(overlap_key, (config.seeds, config.samples, DIM))
        found = np.asarray(sample(settings, starts, scale=config.scale, steps=config.steps, eps=config.eps))
        return {"first": found[:, :1], **score(found)._asdict()}

    def janus() -> dict[str, np.ndarray]:
        objects = train(
            jax.random.split(janus_key, config.seeds),
            config.scale,
            config.negative_w,
            steps=config.janus_steps,
            batch=config.janus_batch,
            learning_rate=config.janus_learning_rate,
            eps=config.eps,
        )
        return look(np.asarray(objects))._asdict()

    stages = {"overlap": overlap, "janus": janus}
    found = {name: run_dir.stage(name, stages[name]) for name in run_dir.progress(stages, "experiments")}
    first = found["overlap"].pop("first")
    scores, views = Scores(**found["overlap"]), Views(**found["janus"])
    for index, setting in enumerate(settings):
        run_dir.log(
            index,
            weight=setting.weight,
            concept=scores.concept[index].mean(),
            joint=scores.joint[index].mean(),
        )
    draw_success(run_dir, settings, scores)
    shown = [0, 1, best(settings, scores, "CEBM"), settings.index(Setting("CEBM", 1.0))]
    draw_samples(run_dir, settings, first, [*shown, best(settings, scores, "Perp-Neg")])
    draw_circle(run_dir, views)
    draw_schedules(run_dir)
    return Outcome(
        measurements(settings, scores, views),
        tables=[_overlap_table(settings, scores), _janus_table(views)],
        notes=_notes(settings, scores),
    )


def compile_target(config: Config) -> "Target":
    """A sampling step with two negative prompts at the size of SDXL's latents, for a mesh of 256 chips.

    Args:
        config: batch.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.perp_neg.pod import sampling_target

    return sampling_target(config.pod_batch)


def _interval(values: np.ndarray) -> str:
    estimate, low, high, _ = mean_interval(values)
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


def _overlap_table(settings: list[Setting], scores: Scores) -> Table:
    rows = []
    for index, setting in enumerate(settings):
        reference = REFERENCE.get(setting, (np.nan,) * 3)
        cells: list[str] = []
        for values, other in zip((scores.concept, scores.joint, scores.distance), reference, strict=True):
            cells += [_interval(values[index]), "" if np.isnan(other) else f"{other:g}"]
        rows.append([setting.rule, f"{setting.weight:g}" if setting.weight else "", *cells])
    heads = [f"{name}{end}" for name in ("concept", "joint", "distance") for end in (" [95 %]", ", numpy")]
    return Table("Overlap experiment, beside an independent run in numpy", ["rule", "weight", *heads], rows)


def _janus_table(views: Views) -> Table:
    rows = []
    for (name, (right, kept)), face in zip(accuracies(views).items(), views.face, strict=True):
        view, concept = JANUS_REFERENCE[name]
        front = (face == FRONT).mean(-1)
        rows.append([name, _interval(right), view, _interval(kept), concept, _interval(front)])
    columns = [
        "method",
        "right view [95 %]",
        "numpy",
        "concept kept [95 %]",
        "numpy",
        "nearest face is the front",
    ]
    return Table("Toy Janus: shares of 36 azimuths", columns, rows)


def _notes(settings: list[Setting], scores: Scores) -> list[str]:
    """What limits the claims, in numbers of this run."""
    joint = {setting: values.mean() for setting, values in zip(settings, scores.joint, strict=True)}
    distance = {setting: values.mean() for setting, values in zip(settings, scores.distance, strict=True)}
    weights = sorted({setting.weight for setting in settings if setting.rule == "CEBM"})
    stronger = [w for w in weights if joint[Setting("CEBM", w)] > joint[Setting("Perp-Neg", w)]]
    largest = Setting("Perp-Neg", max(weights))
    found = ", ".join(
        f"{w:g}: {joint[Setting('CEBM', w)]:.2f} against {joint[Setting('Perp-Neg', w)]:.2f}"
        for w in stronger
    )
    plain = joint[Setting("plain negative", 0.0)]
    enough = [w for w in weights if joint[Setting("Perp-Neg", w)] > plain]
    return [
        "At equal small weights compositional energies succeed more often than Perp-Neg"
        f" (joint success at weight {found})."
        if stronger
        else "At no equal weight do compositional energies succeed more often than Perp-Neg.",
        f"Large weights take Perp-Neg off the data: at weight {largest.weight:g} the median distance to the"
        f" nearest mean is {distance[largest]:.2f} times that of the data.",
        f"Perp-Neg passes the plain negative prompt ({plain:.2f}) from weight {enough[0]:g} on."
        if enough
        else f"At none of the weights does Perp-Neg pass the plain negative prompt ({plain:.2f}).",
        "The paper's numbers are success rates of Stable Diffusion's images, judged by eye; these mixtures"
        " show the mechanism, not the size of the effect there.",
        "The best weight of a rule is the one of its highest mean success over the seeds.",
    ]
