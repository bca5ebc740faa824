"""NegToMe: images in the making, pushed away from each other or from a given one, inside attention.

Reproduces the effects of Singh, Gould and Zheng, arXiv:2412.01339, on real digits with a tiny DiT that is
trained by flow matching:

A. diversity: the four images of a prompt, pushed away from the first of them or from all others, at three
   scales of guidance, beside a lower threshold, a shorter and a longer window, a random match, the released
   code's axis, and condition-annealed sampling (CADS);
B. reference: images of a class, pushed away from its medoid, noised or clean, whole or its upper half;
C. cost: what it adds to sampling, counted at the width of Flux and SDXL.

`maxdiffusion` puts the same functions into MaxDiffusion's Flux and SDXL; `pod` is a sampling step that is
compiled for chips that are not there.
"""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import mean_interval
from experiments.digits import CLASSES
from experiments.neg_tome.claims import (
    CADS,
    CLAIMS,
    DIVERSITY,
    DIVERSITY_REFERENCE,
    GUIDED,
    GUIDED_REFERENCE,
    OFFICIAL,
    RANDOM,
    Values,
    first,
    measurements,
    plain,
)
from experiments.neg_tome.cost import cost_table, count
from experiments.neg_tome.figures import (
    AVOIDED,
    SHOWN,
    columns_of,
    draw_diversity,
    draw_images,
    draw_likeness,
)
from experiments.neg_tome.judges import Likeness, Quality, class_medoids, fit_judge, likeness, quality
from experiments.neg_tome.network import SIZE, digit_network, train
from experiments.neg_tome.sampling import sample
from experiments.parallel import in_parallel
from experiments.run_dir import Outcome, RunDir, Table

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]

GROUP = 4
"""Images of a prompt."""
LOGGED = 50
"""How often losses are logged."""


@dataclass(frozen=True)
class Config:
    """A tiny DiT on digits for each seed, and its samples."""

    seed: int = 0
    """Number that all seeds are drawn from."""
    seeds: int = 4
    """Networks that are trained and sampled from; at least 2."""
    width: int = 64
    """Width of the network, a multiple of 4."""
    layers: int = 4
    """Its blocks."""
    heads: int = 4
    """Its attention heads."""
    train_steps: int = 2500
    """AdamW steps on batches of 64."""
    sampling_steps: int = 25
    """Steps of Euler's method."""
    prompts: int = 6
    """Groups of four images for each class and setting of part A."""
    avoiding: int = 24
    """Images for each class and setting of part B."""
    pod_batch: int = 256
    """Images in the sampling step that `compile` compiles, and nothing else reads; a multiple of 256."""

    def __post_init__(self) -> None:
        if self.seeds < 2:
            raise ValueError(f"seeds: expected at least 2, got {self.seeds}")
        for name in ("width", "layers", "heads", "train_steps", "sampling_steps", "prompts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.avoiding < GROUP:
            raise ValueError(f"avoiding: expected at least {GROUP}, got {self.avoiding}")
        if self.pod_batch < 1 or self.pod_batch % 256:
            raise ValueError(f"pod_batch: expected a positive multiple of 256, got {self.pod_batch}")


PRESETS: dict[str, Config] = {
    "smoke": Config(
        seeds=2,
        width=16,
        layers=1,
        heads=2,
        train_steps=100,
        sampling_steps=5,
        prompts=1,
        avoiding=4,
    ),
    "cpu": Config(),
    # Narrower intervals, and for `compile` four prompts a row of chips. The paper's own scale is Flux.1-dev
    # and SDXL: experiments/neg_tome/maxdiffusion.py holds the loop bodies with which MaxDiffusion samples so.
    "paper": Config(seeds=20, prompts=24, avoiding=96, pod_batch=1024),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains a network for each seed, samples with every setting, measures.

    Args:
        config: sizes.
        run_dir: where stages, figures and metrics go.

    Returns:
        A value of each claim for each seed, and the tables.
    """
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    of_seed = _stages(config)

    def one(seed: int) -> dict[str, np.ndarray]:
        return run_dir.stage(f"seed-{seed}", lambda: jax.device_get(of_seed(keys[seed])))

    found = in_parallel(one, range(config.seeds), run_dir, "Networks and their samples")
    stacked = {name: np.stack([of_one[name] for of_one in found]) for name in found[0]}
    diversity = {name: stacked[f"diversity {name}"] for name in Quality._fields}
    guided = {name: stacked[f"likeness {name}"] for name in Likeness._fields}
    losses = stacked["losses"].mean(0)
    every = max(len(losses) // LOGGED, 1)
    for step in range(every, len(losses) + 1, every):
        run_dir.log(step, loss=losses[step - every : step].mean())
    draw_diversity(run_dir, diversity)
    draw_likeness(run_dir, guided)
    references = class_medoids().reshape(CLASSES, SIZE, SIZE)
    draw_images(run_dir, found[0]["groups"], found[0]["avoiding"], references)
    costs = count(config.width, config.layers, config.heads, GROUP)
    return Outcome(
        measurements(diversity, guided, costs[0].share),
        tables=[_diversity_table(diversity), _likeness_table(guided), cost_table(costs)],
        notes=_notes(diversity, guided, costs[-1].first),
    )


def compile_target(config: Config) -> "Target":
    """A sampling step with NegToMe of a DiT that is told texts, at SDXL's latents, for 256 chips.

    Args:
        config: batch.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.neg_tome.pod import sampling_target

    return sampling_target(config.pod_batch)


def _stages(config: Config) -> Any:
    """What is done with the key of a seed."""
    model = digit_network(config.width, config.layers, config.heads)
    judge, references = fit_judge(), jnp.asarray(class_medoids())
    trained = jax.jit(partial(train, model, config.train_steps))
    label = jnp.repeat(jnp.arange(CLASSES), config.prompts * GROUP)
    group = 1 + config.avoiding
    alike_label = jnp.repeat(jnp.arange(CLASSES), group)

    @jax.jit
    def diverse(params: Any, key: jax.Array) -> tuple[jax.Array, Quality]:
        of_start, of_steps = jax.random.split(key)
        start = jax.random.normal(of_start, (len(label), SIZE, SIZE, 1))
        images = sample(
            model,
            params,
            list(DIVERSITY),
            start,
            label,
            of_steps,
            group=GROUP,
            steps=config.sampling_steps,
        )
        return images, jax.lax.map(lambda x: quality(judge, x, label, GROUP), images)

    @jax.jit
    def avoiding(params: Any, key: jax.Array) -> tuple[jax.Array, Likeness]:
        of_start, of_steps = jax.random.split(key)
        start = jax.random.normal(of_start, (len(alike_label), SIZE, SIZE, 1))
        images = sample(
            model,
            params,
            list(GUIDED),
            start,
            alike_label,
            of_steps,
            group=group,
            steps=config.sampling_steps,
            references=references,
        )
        # The first image of each group is the reference, as the network went on from it.
        images = images.reshape(len(GUIDED), CLASSES, group, *start.shape[1:])[:, :, 1:]
        given = jnp.repeat(references, config.avoiding, axis=0)
        shown = jnp.repeat(jnp.arange(CLASSES), config.avoiding)

        def measured(x: jax.Array) -> Likeness:
            return likeness(judge, x.reshape(given.shape), shown, given)

        return images, jax.lax.map(measured, images)

    def of_seed(key: jax.Array) -> dict[str, Any]:
        of_training, of_diversity, of_avoiding = jax.random.split(key, 3)
        params, losses = trained(of_training)
        groups, of_groups = diverse(params, of_diversity)
        alike, of_alike = avoiding(params, of_avoiding)
        groups = groups.reshape(len(DIVERSITY), CLASSES, config.prompts, GROUP, SIZE, SIZE)
        return {
            "losses": losses,
            "groups": groups[jnp.array(columns_of(DIVERSITY, SHOWN)), :, 0],
            "avoiding": alike[jnp.array(columns_of(GUIDED, AVOIDED)), :, :GROUP, ..., 0],
            **{f"diversity {name}": values for name, values in of_groups._asdict().items()},
            **{f"likeness {name}": values for name, values in of_alike._asdict().items()},
        }

    return of_seed


def _interval(values: np.ndarray) -> str:
    estimate, low, high, _ = mean_interval(values)
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


def _diversity_table(values: Values) -> Table:
    heads = {
        "similarity": "similarity",
        "vendi": "Vendi",
        "frechet": "Fréchet",
        "inception": "inception score",
        "accuracy": "accuracy",
        "nearest": "to the nearest digit",
    }
    rows = []
    for index, (setting, name) in enumerate(DIVERSITY.items()):
        reference = DIVERSITY_REFERENCE.get(setting, (np.nan,) * 3)
        other = " / ".join("-" if np.isnan(value) else f"{value:g}" for value in reference)
        rows.append([name, *(_interval(values[field][:, index]) for field in heads), other])
    columns = [
        "away from",
        *(f"{head} [95 %]" for head in heads.values()),
        "PyTorch: similarity / Vendi / FD",
    ]
    return Table(
        "A. Diversity of four images of a prompt, beside an independent run in PyTorch", columns, rows
    )


def _likeness_table(values: Values) -> Table:
    rows = []
    for index, (setting, name) in enumerate(GUIDED.items()):
        other = GUIDED_REFERENCE.get(setting)
        fields = ("similarity", "upper", "lower", "frechet", "accuracy")
        found = (_interval(values[field][:, index]) for field in fields)
        rows.append([name, *found, "" if other is None else f"{other:g}"])
    heads = ("similarity", "upper half", "lower half", "Fréchet", "accuracy")
    columns = ["away from the reference", *(f"{head} [95 %]" for head in heads), "PyTorch: similarity"]
    return Table("B. Likeness to a reference, the medoid of the class", columns, rows)


def _notes(diversity: Values, guided: Values, tiny: float) -> list[str]:
    """What limits the claims, in numbers of this run."""
    similar = dict(zip(DIVERSITY, diversity["similarity"].mean(0), strict=True))
    like = dict(zip(GUIDED, guided["similarity"].mean(0), strict=True))
    fall = 100 * (1 - min(like.values()) / like[plain()])
    rivals = {"random match": RANDOM, "the released code's axis": OFFICIAL, "CADS": CADS}
    beside = ", ".join(f"{name} {similar[setting]:.3f}" for name, setting in rivals.items())
    return [
        "The reference image of a group does not change: 'first image' moves three images of four, 'other"
        " images' all of them, with a larger α as well.",
        f"Similarity at CFG 3 without anything {similar[plain()]:.3f}, away from the first image"
        f" {similar[first()]:.3f}; {beside} (means over the seeds).",
        f"The strongest setting of part B lowers the similarity to the reference by {fall:.1f} % (mean over"
        " the seeds); the paper's 34.57 % is of copyrighted characters in DreamSim's features.",
        f"The share in the tiny model ({100 * tiny:.1f} % of a step's multiplications, 16 tokens) says"
        " nothing about Flux: it falls with the width and grows with the number of tokens.",
        "CADS mixes noise into the embedding of the class, of a size chosen for embeddings of texts.",
    ]
