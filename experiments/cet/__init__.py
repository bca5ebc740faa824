"""CET: unlabelled is not non-relevant, since annotators saw only what was pooled.

Reproduces Cai et al., "Hard Negatives or False Negatives", arXiv:2209.05072, twice: in a generator where
relevance and selection are known and CET's assumptions hold, and on collections with full judgments, where a
pool is simulated. The paper trains BERT cross-encoders on MS MARCO; `compile` compiles that step for a pod.
The paper's tables were not available: what it reports is printed as "n/a".
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from experiments.cet import generator, pooled
from experiments.cet.claims import CLAIMS, NOT_AVAILABLE, measurements
from experiments.cet.figures import draw_false_shares, draw_generator, draw_pooled, draw_temperature
from experiments.cet.pooled import Pooling
from experiments.cet.training import Arm, Recipe
from experiments.claims import mean_interval
from experiments.collections import find_collections, load_collection
from experiments.run_dir import Outcome, RunDir, Table

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "compile_target", "run"]


@dataclass(frozen=True)
class Generated:
    """Training in the generator."""

    seeds: int = 10
    """Draws of the world."""
    queries: int = 300
    """Of which a third is for testing."""
    documents: int = 200
    """Of each query."""
    steps: int = 1500
    """Updates."""
    batch: int = 64
    """Pairs in a step."""
    learning_rate: float = 3e-3
    """Of AdamW."""


@dataclass(frozen=True)
class Real:
    """Training on collections."""

    collections: tuple[str, ...] = ("cranfield", "cisi", "vaswani")
    """Folders below JAXNEG_DATA/cet, paths of folders, or "tiny" for the embedded one."""
    seeds: int = 3
    """Repetitions; each splits the queries and draws the triples anew."""
    folds: int = 5
    """Parts of the queries; each is tested by a ranker trained on the others."""
    depths: tuple[int, ...] = (20, 50)
    """Depths of BM25's pool; the first one decides the claims."""
    listed: tuple[int, ...] = (20, 100)
    """First documents of a retriever that negatives are drawn from, one number for each depth."""
    random_pools: bool = True
    """Whether labels are also drawn at random, as many as BM25's first pool gives."""
    candidates: int = 100
    """Documents of the dense retriever that are re-ranked."""
    steps: int = 400
    """Updates."""
    batch: int = 64
    """Pairs in a step."""
    learning_rate: float = 2e-3
    """Of AdamW."""
    dropout: float = 0.2
    """Of the hidden units."""


@dataclass(frozen=True)
class Pod:
    """The step that `compile` compiles: two BERT-base cross-encoders, sharded over 256 chips."""

    pairs: int = 1024
    """Pairs in a step; the paper has 32."""
    tokens: int = 291
    """Of a row: 32 of the query, 256 of the document, and BERT's three."""
    remat: bool = True
    """Whether a layer's inside is recomputed in the backward pass."""


@dataclass(frozen=True)
class Config:
    """Both experiments."""

    generated: Generated = field(default_factory=Generated)
    """The generator."""
    real: Real = field(default_factory=Real)
    """Collections."""
    every_arm: bool = True
    """Whether baselines and variants that no claim needs are trained too."""
    pod: Pod = field(default_factory=Pod)
    """The paper's models."""

    def __post_init__(self) -> None:
        for group, names in (
            (self.generated, ("seeds", "documents", "steps", "batch")),
            (self.real, ("seeds", "candidates", "steps", "batch")),
            (self.pod, ("pairs", "tokens")),
        ):
            for name in names:
                if getattr(group, name) < 1:
                    raise ValueError(f"{name}: expected at least 1, got {getattr(group, name)}")
        if self.generated.queries < 3:
            raise ValueError(f"queries: expected at least 3, got {self.generated.queries}")
        real = self.real
        if real.folds < 2:
            raise ValueError(f"folds: expected at least 2, got {real.folds}")
        if not real.collections:
            raise ValueError("collections: expected at least one, got none")
        if not real.depths or len(real.depths) != len(real.listed) or min(*real.depths, *real.listed) < 1:
            raise ValueError(
                "depths, listed: expected positive numbers, as many of one as of the other, got "
                f"{real.depths} and {real.listed}"
            )
        if not 0 <= real.dropout < 1:
            raise ValueError(f"dropout: expected a number in [0, 1), got {real.dropout}")


PRESETS: dict[str, Config] = {
    "smoke": Config(
        Generated(seeds=2, queries=60, documents=100, steps=60),
        Real(
            ("tiny",),
            seeds=2,
            folds=2,
            depths=(5,),
            listed=(10,),
            candidates=30,
            steps=30,
            random_pools=False,
        ),
        every_arm=False,
    ),
    "cpu": Config(),
    # Narrower intervals. The paper's own scale is two BERT-base models on MS MARCO: `compile` compiles their
    # step, and experiments/cet/pod.py reads BERT checkpoints and MS MARCO triples for it.
    "paper": Config(Generated(seeds=20), Real(seeds=10)),
}


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains every arm in the generator and on every collection.

    Args:
        config: sizes.
        run_dir: where results and figures go.

    Returns:
        A value of each claim for each seed, and the tables.
    """
    arms = _arms(config)
    made = _generated(config.generated, arms[0], run_dir)
    folders, note = find_collections(config.real.collections)
    notes = [*NOTES] if note is None else [note, *NOTES]
    real: dict[str, dict[Pooling, dict[str, np.ndarray]]] = {}
    shares, quality = {}, {}
    for name, folder in folders.items():
        scored = pooled.score(load_collection(folder))
        notes.append(f"{name}: the dense retriever is {scored.dense_name}.")
        shares[name] = run_dir.stage(f"{name}-shares", lambda s=scored: pooled.false_negative_shares(s))
        quality[name] = run_dir.stage(f"{name}-retrievers", lambda s=scored: pooled.retriever_quality(s))
        real[name] = {
            pooling: _pooled(config.real, arms[1], run_dir, scored, pooling)
            for pooling in poolings(config.real)
        }
    first = {name: next(iter(of.values())) for name, of in real.items()}
    _log(run_dir, made, first)
    draw_generator(run_dir, arms[0], made)
    draw_temperature(run_dir, arms[0], made)
    draw_false_shares(run_dir, shares)
    draw_pooled(run_dir, arms[1], real, quality)
    tables = [_generator_table(arms[0], made), _share_table(shares), _retriever_table(quality)]
    tables += [
        _pooled_table(arms[1], name, pooling, found)
        for name, of in real.items()
        for pooling, found in of.items()
    ]
    return Outcome(measurements(arms, made, first, shares), tables, notes)


def poolings(real: Real) -> list[Pooling]:
    """How labels and negatives come about, the claims' way first.

    Args:
        real: settings of the collections.
    """
    found = [
        Pooling(pooled.BM25, depth, listed) for depth, listed in zip(real.depths, real.listed, strict=True)
    ]
    if real.random_pools:
        found.append(Pooling(pooled.RANDOM, real.depths[0], real.listed[0]))
    return found


def compile_target(config: Config) -> "Target":
    """The coupled step of two BERT-base cross-encoders, for a mesh of 256 chips.

    Args:
        config: its ``pod`` field gives the sizes.

    Returns:
        The step and its abstract arguments.
    """
    from experiments.cet.pod import cross_encoder_target

    return cross_encoder_target(config.pod.pairs, config.pod.tokens, remat=config.pod.remat)


NOTES = (
    "The paper's tables were not available to us: no figure of it is printed but the one of a third-party"
    " summary, about 9 % lower MRR@10 with RepBERT's negatives than with BM25's.",
    "The generator is favourable by construction: the relevance model cannot see selection features, the"
    " selection model cannot see relevance features, and selection is a sharp function of z_s. It shows that"
    " the mechanism works where its assumptions hold, not that they hold on texts.",
    "Separate inputs are ours; with the same inputs for both models, as published, nothing but random heads"
    " and dropout tells them apart. Read the rows with shared inputs.",
    "The gain in the generator is narrow in tau: it must be tuned on held-out queries.",
    "Where labels come from BM25's pool and negatives from a dense retriever, a ranker can learn that similar"
    " means negative, which weights of negatives cannot repair: even the oracle falls. The rows with random"
    " pools have no such bias in their positives.",
    "Intervals over seeds on fixed collections say nothing about other collections.",
)


def _arms(config: Config) -> tuple[tuple[Arm, ...], tuple[Arm, ...]]:
    """Of the generator and of the collections."""
    if config.every_arm:
        return generator.ARMS, pooled.ARMS
    return generator.DECISIVE, pooled.DECISIVE


def _generated(config: Generated, arms: tuple[Arm, ...], run_dir: RunDir) -> dict[str, np.ndarray]:
    return generator.compare(
        generator.World(queries=config.queries, documents=config.documents),
        Recipe(learning_rate=config.learning_rate),
        seeds=config.seeds,
        steps=config.steps,
        batch=config.batch,
        arms=arms,
        progress=lambda arms: run_dir.progress(arms, "generator"),
        stage=lambda place, compute: run_dir.stage(f"generator-{place}", compute),
    )


def _pooled(
    config: Real, arms: tuple[Arm, ...], run_dir: RunDir, scored: pooled.Scored, pooling: Pooling
) -> dict[str, np.ndarray]:
    prefix = f"{scored.name}-{pooling.by}-{pooling.depth}-{pooling.listed}"
    return pooled.compare(
        scored,
        pooling,
        Recipe(learning_rate=config.learning_rate, dropout=config.dropout),
        seeds=config.seeds,
        folds=config.folds,
        steps=config.steps,
        batch=config.batch,
        candidates=config.candidates,
        arms=arms,
        progress=lambda arms: run_dir.progress(arms, f"{scored.name}, {pooling.name}"),
        stage=lambda place, compute: run_dir.stage(f"{prefix}-{place}", compute),
    )


def _interval(values: np.ndarray) -> str:
    estimate, low, high, _ = mean_interval(values)
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"


def _arm_cells(found: dict[str, np.ndarray], place: int) -> list[str | float | int]:
    weight = found["false_weight"][place]
    return [
        _interval(found["ndcg"][place]),
        _interval(found["mrr"][place]),
        f"{100 * found['false_share'][place].mean():.1f}",
        "" if np.isnan(weight).any() else f"{weight.mean():.3f}",
    ]


COLUMNS = ["nDCG@10 [95 %]", "MRR@10 [95 %]", "false negatives, %", "weight of false over true"]


def _generator_table(arms: tuple[Arm, ...], made: dict[str, np.ndarray]) -> Table:
    rows: list[list[str | float | int]] = []
    for place, arm in enumerate(arms):
        ndcg, weight = generator.REFERENCE.get((arm.name, arm.negatives), (np.nan, np.nan))
        reference = ["" if np.isnan(x) else f"{x:g}" for x in (ndcg, weight)]
        rows.append([arm.negatives, arm.name, *_arm_cells(made, place), *reference])
    for place, name in enumerate(("weak", "strong")):
        rows.append(["", f"the {name} retriever itself", _interval(made["retrievers"][place]), *[""] * 5])
    columns = ["negatives", "method", *COLUMNS, "nDCG@10, independent run", "weight, independent run"]
    return Table(f"Generator, against true relevance; paper: {NOT_AVAILABLE}", columns, rows)


def _share_table(shares: dict[str, dict[str, np.ndarray]]) -> Table:
    rows: list[list[str | float | int]] = [
        [name, depth, *(f"{100 * of[retriever][place]:.1f}" for retriever in (pooled.BM25, pooled.DENSE))]
        for name, of in shares.items()
        for place, depth in enumerate(pooled.DEPTHS)
    ]
    columns = ["collection", "depth of BM25's pool", "BM25, %", "dense, %"]
    return Table(f"Relevant among the first {pooled.COUNTED} unlabelled documents", columns, rows)


def _retriever_table(quality: dict[str, dict[str, np.ndarray]]) -> Table:
    rows: list[list[str | float | int]] = []
    references = {pooled.BM25: pooled.BM25_REFERENCE, pooled.DENSE: pooled.DENSE_REFERENCE}
    for name, of in quality.items():
        for retriever, reference in references.items():
            expected = reference.get(name)
            rows.append(
                [
                    name,
                    retriever,
                    *(f"{value:.4f}" for value in of[retriever]),
                    "" if expected is None else " / ".join(f"{value:.4f}" for value in expected),
                ]
            )
    columns = ["collection", "retriever", "nDCG@10", "MRR@10", "independent run"]
    return Table("The retrievers themselves", columns, rows)


def _pooled_table(arms: tuple[Arm, ...], name: str, pooling: Pooling, found: dict[str, np.ndarray]) -> Table:
    rows: list[list[str | float | int]] = [
        [arm.negatives, arm.name, *_arm_cells(found, place)] for place, arm in enumerate(arms)
    ]
    return Table(f"{name}, {pooling.name}; paper: {NOT_AVAILABLE}", ["negatives", "method", *COLUMNS], rows)


def _log(run_dir: RunDir, made: dict[str, np.ndarray], real: dict[str, dict[str, np.ndarray]]) -> None:
    """One line an arm: the means over the seeds."""
    everything = {"generator": made, **real}
    for place in range(max(len(of["ndcg"]) for of in everything.values())):
        there = {name: of["ndcg"][place] for name, of in everything.items() if place < len(of["ndcg"])}
        run_dir.log(place, **{f"{name}/ndcg": float(values.mean()) for name, values in there.items()})
