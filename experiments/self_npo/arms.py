"""Trains the networks of a part, puts them together as guidance has them, and measures the samples.

Each network and each pair of networks is a stage of its own, for all seeds in one program, so that a run that
died goes on; as many at once as there are cores.
"""

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PRNGKeyArray

from experiments.parallel import in_parallel, over_seeds
from experiments.run_dir import RunDir
from experiments.self_npo.fine_tuning import Pairs, Preference, SelfNPO, fine_tune, prefer, ranked_pairs
from experiments.self_npo.network import (
    SCHEDULE,
    TIMESTEPS,
    Params,
    Task,
    sample,
    train_base,
)
from jaxneg.diffusion import add_noise, merge_weights, offset

Item = TypeVar("Item")

EARLY = "the base network after a third of its training"

Network = SelfNPO | Preference | str
"""A network besides the base one: how it is made of it, or `EARLY`."""


@dataclass(frozen=True)
class Arm:
    """Which networks guide."""

    negative: Network | None = None
    """None: the base network."""
    positive: Preference | None = None
    """None: the base network."""
    alpha: float = 1.0
    """How much of what the positive network has learnt the negative one has too."""
    beta: float = 1.0
    """How much of what the negative network has learnt is taken."""

    @property
    def name(self) -> str:
        """As tables have it."""
        negative = getattr(self.negative, "name", "autoguidance" if self.negative else "CFG")
        share = f", b = {self.beta:g}" if self.beta != 1 else ""
        return f"{negative}{share}"

    @property
    def stage(self) -> str:
        """The name as a file may have it."""
        parts = [self.name, *([self.positive.name, f"a {self.alpha:g}"] if self.positive else [])]
        return _file_name(" ".join(parts))


CFG = Arm()


class Measured(NamedTuple):
    """What is generated, and how samples are measured."""

    task: Task
    samples: int
    guidances: tuple[float, ...]
    """Guidance weights w_g, 0 and above."""
    reward: Callable[[Array, Array], Array]
    """``(samples, labels) -> [batch]``; more is better."""
    quality: Callable[[Array, Array], Any]
    """``(samples, labels) ->`` a named tuple of arrays."""


class Part(NamedTuple):
    """A task, and how networks are trained on it."""

    name: str
    measured: Measured
    base_steps: int
    steps: int
    """Of Self-NPO."""
    preference_steps: int
    pairs: int

    @property
    def task(self) -> Task:
        """What is generated."""
        return self.measured.task


Results = Mapping[Arm, Mapping[str, np.ndarray]]
"""By arm what is measured, ``[seeds, guidances]`` or ``[seeds, guidances, samples]``, and the samples of the
first seed."""

Courses = Mapping[str, np.ndarray]
"""By network the loss of every step ``[seeds, steps]``; of those that learn pairs, the implicit accuracy."""


def run_parts(
    parts: Sequence[tuple[Part, Sequence[Arm], PRNGKeyArray]], run_dir: RunDir
) -> tuple[list[Results], Courses]:
    """Trains all networks that the arms need and measures the arms.

    Args:
        parts: each with its arms, and a key for each seed.
        run_dir: where the stages are kept.

    Returns:
        What was measured, by part; and the losses.
    """
    runners = [_Runner(*part, run_dir) for part in parts]
    in_parallel(_Runner.begin, runners, run_dir, "Base networks")
    trained = [(runner, network) for runner in runners for network in runner.networks]
    trained = _each_program_first(trained, lambda item: (item[0].part.name, item[1].program))
    in_parallel(lambda item: item[0].train(item[1]), trained, run_dir, "Negative networks")
    measured = [(runner, arm) for runner in runners for arm in runner.arms]
    measured = _each_program_first(measured, lambda item: item[0].part.name)
    in_parallel(lambda item: item[0].measure(item[1]), measured, run_dir, "Samples of the arms")
    courses = {f"{runner.part.name}/{name}": c for runner in runners for name, c in runner.courses.items()}
    return [{arm: runner.found[arm] for arm in runner.arms} for runner in runners], courses


def _each_program_first(items: Sequence[Item], program: Callable[[Item], Hashable]) -> list[Item]:
    """One item of each program before the others, so that threads do not compile the same one at once."""
    first = list({program(item): item for item in reversed(items)}.values())[::-1]
    return first + [item for item in items if item not in first]


class _Runner:
    """What the networks and the arms of a part share."""

    def __init__(self, part: Part, arms: Sequence[Arm], keys: PRNGKeyArray, run_dir: RunDir):
        self.part, self.arms, self.run_dir, self.programs = part, arms, run_dir, programs()
        self.of_base, self.of_network, self.of_pairs, self.of_samples = jax.vmap(
            partial(jax.random.split, num=4), out_axes=1
        )(keys)
        needed = dict.fromkeys(network for arm in arms for network in (arm.positive, arm.negative))
        self.networks = [network for network in needed if isinstance(network, SelfNPO | Preference)]
        self.trained: dict[Network | None, Params] = {}
        self.courses: dict[str, np.ndarray] = {}
        self.found: dict[Arm, dict[str, np.ndarray]] = {}

    def begin(self) -> None:
        """Trains the base network, and ranks its samples if some network learns a preference."""
        part = self.part

        def train() -> dict[str, Any]:
            return self.programs.train(part.task, part.base_steps, self.of_base)._asdict()

        def rank() -> dict[str, Any]:
            static = (part.task, part.measured.reward, part.pairs)
            return self.programs.rank(*static, self.base, self.of_pairs)._asdict()

        bases = self._stage("base", train)
        self.base, self.courses["base"] = bases["params"], bases["loss"]
        self.trained |= {None: self.base, EARLY: bases["early"]}
        if any(isinstance(network, Preference) for network in self.networks):
            self.pairs = Pairs(**self._stage("pairs", rank))

    def train(self, how: SelfNPO | Preference) -> None:
        """Makes a network of the base network."""
        part, base = self.part, self.base

        def compute() -> dict[str, Any]:
            if isinstance(how, SelfNPO):
                numbers = self._for_seeds([how.guidance, how.label_dropout, how.learning_rate])
                static = (part.task, how.start, how.simulate, part.steps)
                found = self.programs.fine_tune(*static, numbers, base, self.of_network)
            else:
                steps, beta = how.lengthen * part.preference_steps, self._for_seeds(how.beta)
                better, worse, label = self.pairs
                pairs = self.pairs if how.reverse else Pairs(worse, better, label)
                found = self.programs.prefer(part.task, steps, beta, base, pairs, self.of_network)
            return dict(zip(("params", "course"), found, strict=True))

        found = self._stage(f"network {how.name}", compute)
        self.trained[how], self.courses[how.name] = found["params"], found["course"]

    def measure(self, arm: Arm) -> None:
        """Samples an arm."""
        positive, negative = self.trained[arm.positive], self.trained[arm.negative]

        def compute() -> dict[str, Any]:
            found = self.programs.measure(
                self.part.measured,
                self.base,
                positive,
                negative,
                self._for_seeds([arm.alpha, arm.beta]),
                self.of_samples,
            )
            return found | {"samples": found["samples"][0]}

        self.found[arm] = self._stage(f"arm {arm.stage}", compute)

    def _for_seeds(self, value: Any) -> Array:
        return jnp.stack([jnp.asarray(value, jnp.float32)] * len(self.of_base))

    def _stage(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """A stage whose arrays may lie in a tree."""

        def flat() -> dict[str, Any]:
            return flatten_dict(dict(compute()), sep="/")

        return unflatten_dict(self.run_dir.stage(_file_name(f"{self.part.name} {name}"), flat), sep="/")


def _fine_tune(
    task: Task,
    start: Literal["data", "noise"],
    simulate: bool,
    steps: int,
    numbers: Array,
    base: Params,
    key: PRNGKeyArray,
) -> tuple[Params, Array]:
    """One program for all guidances, dropouts and learning rates."""
    guidance, dropout, learning_rate = numbers
    how: Any = SelfNPO(guidance, start, dropout, learning_rate, simulate)  # pyright: ignore[reportArgumentType]
    return fine_tune(task, how, steps, base, key)


def _measure(
    part: Measured, base: Params, positive: Params, tuned: Params, shares: Array, key: PRNGKeyArray
) -> dict[str, Array]:
    """Samples of one seed under every guidance, and how the negative network stands to the positive one."""
    task = part.task
    negative = merge_weights(base, offset(positive, base), offset(tuned, base), *shares)
    label = jnp.arange(part.samples) % task.classes
    start = jax.random.normal(key, (part.samples, task.features))

    def guided(guidance: Array) -> dict[str, Array]:
        x = sample(task, positive, negative, start, label, guidance)
        return {"samples": x} | part.quality(x, label)._asdict()

    found = jax.lax.map(guided, jnp.array(part.guidances))
    alone = sample(task, tuned, tuned, start, label, 0.0)
    return found | {
        "alone": jnp.mean(part.quality(alone, label)[0]),
        "cosine": _cosine(task, positive, negative, key),
    }


def _cosine(task: Task, positive: Params, negative: Params, key: PRNGKeyArray) -> Array:
    """How near the two predictions are, on noised data at uniform times."""
    of_data, of_time, of_noise = jax.random.split(key, 3)
    x, label = task.draw(of_data)
    t = jax.random.randint(of_time, label.shape, 0, TIMESTEPS)
    alpha, sigma = (jnp.asarray(level, x.dtype)[t] for level in (SCHEDULE.alpha, SCHEDULE.sigma))
    x = add_noise(x, jax.random.normal(of_noise, x.shape), alpha, sigma)
    ours = task.model.apply(positive, x, t, label)
    theirs = task.model.apply(negative, x, t, jnp.full_like(label, task.classes))
    norms = jnp.linalg.norm(ours, axis=-1) * jnp.linalg.norm(theirs, axis=-1)
    return jnp.mean(jnp.sum(ours * theirs, axis=-1) / norms)


class Programs(NamedTuple):
    """The compiled functions; what comes before the arrays is static."""

    train: Callable[..., Any]
    fine_tune: Callable[..., Any]
    rank: Callable[..., Any]
    prefer: Callable[..., Any]
    measure: Callable[..., Any]


@lru_cache
def programs() -> Programs:
    """Functions of all seeds, compiled once for each task and settings."""

    def compiled(function: Callable[..., Any], static: int) -> Callable[..., Any]:
        def of_seeds(*arguments: Any) -> Any:
            return over_seeds(partial(function, *arguments[:static]))(*arguments[static:])

        return jax.jit(of_seeds, static_argnums=tuple(range(static)))

    return Programs(
        compiled(train_base, 2),
        compiled(_fine_tune, 4),
        compiled(ranked_pairs, 3),
        compiled(prefer, 2),
        compiled(_measure, 1),
    )


def _file_name(name: str) -> str:
    kept = name.replace("∅", "null").replace("β", "beta")
    return re.sub(r"[^A-Za-z0-9.-]+", "_", kept)
