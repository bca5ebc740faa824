"""W2PGNN: when to pre-train graph neural networks.

Reproduces the effect of Cao et al. 2023, arXiv:2303.16458: whether pre-training will help can be told
before any training, from the Gromov-Wasserstein distance between the downstream graphon and the mixtures of
the pre-training graphons. Part A transfers between graphs of known graphons, where only the generating
mechanism differs; part B between real networks, by contrastive pre-training on random-walk views (GCC).
Each selection of pre-training sets is scored by feasibility and by the paper's baselines, and the scores
are correlated with what pre-training gave.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from experiments.parallel import in_parallel
from experiments.run_dir import Outcome, RunDir, Table
from experiments.w2pgnn.claims import CLAIMS, Study, measurements
from experiments.w2pgnn.correlation import split_half
from experiments.w2pgnn.figures import draw_correlations, draw_curves, draw_graphons, draw_scatter
from experiments.w2pgnn.pod import PodScale
from experiments.w2pgnn.pretraining import GCC_MOCO, Encoder
from experiments.w2pgnn.real import Networks, Real, accuracies, load_networks
from experiments.w2pgnn.scores import Scored, score_selections, whole
from experiments.w2pgnn.tables import (
    choices_table,
    real_table,
    results_table,
    selection_table,
    transfer_table,
)
from experiments.w2pgnn.transfer import (
    DOWNSTREAM,
    PRETRAINING,
    Mixture,
    Transfer,
    draw_world,
    selections_of,
    transfer_losses,
)
from experiments.w2pgnn.views import small_graphs

if TYPE_CHECKING:
    from jaxneg.train import Target

__all__ = ["CLAIMS", "PRESETS", "Config", "Encoder", "PodScale", "Real", "Transfer", "compile_target", "run"]

PAIR = 2
"""Sets in a selection of part A."""


@dataclass(frozen=True)
class Config:
    """Settings of both parts."""

    transfer: Transfer = field(default_factory=Transfer)
    """Part A: graphs of known graphons."""
    real: Real = field(default_factory=Real)
    """Part B: real networks."""
    pod: PodScale = field(default_factory=PodScale)
    """What `compile` compiles, and nothing else reads."""


GCC_NETWORKS = tuple(
    f"edges:gcc/{name}.edgelist"
    for name in ("imdb", "facebook", "dblp_snap", "dblp_netrep", "academia", "livejournal", "msu")
)
PRESETS: dict[str, Config] = {
    "smoke": Config(
        transfer=Transfer(
            worlds=2, seeds=1, nodes=16, graphs=60, estimated=40, tuning=2, evaluation=40, unused=2,
            steps=60, batch=4, tuning_steps=3, resolution=4, alpha_steps=20, clusters=2,
        ),
        real=Real(
            pretraining=("usa_airport", "europe_airport", "facebook_ego348"), downstream=("brazil_airport",),
            selected=(2,), seeds=2, seed_nodes=40, walk_steps=32, view_nodes=16, ego_graphs=6, ego_most=120,
            resolution=4, alpha_steps=20, clusters=2, encoder=Encoder(layers=2, width=8, batch=16, steps=10),
        ),
    ),
    "cpu": Config(),
    # The paper's networks as edge lists in the folder w2pgnn/gcc of the data folder; its molecules are read
    # with --real.pretraining smiles:FILE#0 smiles:FILE#1 ... `compile` compiles a step of all runs at once.
    "paper": Config(
        transfer=Transfer(worlds=10, seeds=10, steps=3000, resolution=32, alpha_steps=100),
        real=Real(
            pretraining=GCC_NETWORKS,
            downstream=(
                "usa_airport", "europe_airport", "wiki_chameleon",
                "edges:hindex/aminer_hindex_rand1_5000.edgelist",
            ),
            selected=(2, 3), seeds=6, seed_nodes=5000, restart=0.8, walk_steps=256, view_nodes=128,
            ego_graphs=1000, ego_least=2, ego_most=1000, resolution=64, alpha_steps=100, encoder=GCC_MOCO,
        ),
    ),
}  # fmt: skip


NOTES = (
    "The paper's correlations were not available; its selections are a public leaderboard's extract "
    "(ROC-AUC on molecules), so that only directions compare. The prototype's figures come from another "
    "program with one draw of the graphs.",
    "Feasibilities are those of block means without denoising (TV weight 0) and of the exact square-loss "
    "Gromov-Wasserstein distance, where the published code has TV weight h and an entropic one; both are "
    "ours. Claims are about the domain basis; all bases are in the tables.",
    "Part A: a world is a draw of all graphs; a training's initialisation and draws are alike for all "
    "selections of its seed. Intervals are over worlds.",
    "Part B: Fisher's intervals take selections for independent, which share networks: they are rather too "
    "narrow.",
)


def run(config: Config, run_dir: RunDir) -> Outcome:
    """Trains on every selection, scores every selection, and correlates.

    Args:
        config: the settings.
        run_dir: takes figures, metrics and finished stages.

    Returns:
        Measurements of the claims, tables and notes.
    """
    zero_shot, tuned, tables = _part_a(config.transfer, run_dir)
    networks = load_networks(config.real)
    study, more_tables, notes = _part_b(config.real, networks, run_dir)
    return Outcome(measurements(zero_shot, tuned, study), [*tables, *more_tables], [*notes, *NOTES])


def compile_target(config: Config) -> "Target":
    """GCC's step for 256 pre-trainings, one a chip, or the grid of feasibilities.

    Args:
        config: its ``pod`` field says which, and how large.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    from experiments.w2pgnn.pod import pod_target

    return pod_target(config.pod)


def _part_a(sizes: Transfer, run_dir: RunDir) -> tuple[Study, Study, list[Table]]:
    selections = selections_of(len(PRETRAINING), PAIR)

    def one(world: int) -> dict[str, np.ndarray]:
        def compute() -> dict[str, np.ndarray]:
            drawn = draw_world(world, sizes)
            scored = score_selections(
                [whole(graphs[: sizes.estimated]) for graphs in drawn.pretraining],
                [whole(graphs) for graphs in drawn.downstream],
                selections,
                resolution=sizes.resolution,
                steps=sizes.alpha_steps,
                clusters=sizes.clusters,
                seed=world,
                denoised=True,
            )
            return transfer_losses(world, drawn, sizes, selections) | _stored(scored)

        return run_dir.stage(f"transfer-{world}", compute)

    found = in_parallel(one, range(sizes.worlds), run_dir, "part A: worlds of known graphons")
    scores = {
        name: np.stack([each[name] for each in found]) for name in found[0] if name.startswith("score ")
    }
    scores = {name.removeprefix("score "): values for name, values in scores.items()}
    targets = [_mixture_name(mixture) for mixture in DOWNSTREAM]
    sets = [f"type {kind}" for kind in PRETRAINING]

    def study(name: str) -> Study:
        losses = np.stack([each[name].mean(0) for each in found])  # over the seeds of a world
        return Study(sets, targets, selections, scores, -losses)

    zero_shot, tuned = study("zero_shot"), study("tuned")
    curve = np.mean([each["curve"] for each in found], axis=0)
    for step in range(0, sizes.steps, max(1, sizes.steps // 50)):
        run_dir.log(step, **{"transfer/loss": float(curve[:-1, step].mean())})
    at_once, after = "− cross-entropy, zero-shot", "− cross-entropy, fine-tuned"
    run_dir.figure(
        "feasibility",
        draw_scatter({at_once: zero_shot, after: tuned}, untrained=[at_once]),
        "Controlled transfer: feasibility of each pair of pre-training graphons against what it gives "
        f"(nats), mean over {sizes.worlds} worlds, without fine-tuning (above) and after it (below); points "
        "below the dashed line are negative transfer. r is the mean of the worlds' correlations.",
    )
    run_dir.figure(
        "correlations",
        draw_correlations(zero_shot, over_selections=False),
        "Controlled transfer: correlation of each score with the zero-shot performance over the pairs, "
        "mean over downstream sets (bars, with 95 % intervals over worlds) and for each (marks).",
    )
    run_dir.figure(
        "graphons",
        draw_graphons(found[0]["graphons"], [*sets, *targets], len(sets)),
        "Controlled transfer: block-mean graphons of the first world, nodes sorted by degree.",
    )
    labels = [*["selection"] * len(selections), "all"]
    run_dir.figure(
        "curves",
        draw_curves(curve[:-1], labels),
        "Controlled transfer: cross-entropy of hidden pairs while pre-training, mean over worlds and seeds.",
    )
    kinds = [str(kind) for kind in PRETRAINING]
    tables = [
        transfer_table(zero_shot, tuned),
        selection_table(
            tuned, "Selection in part A beside the paper's: − cross-entropy after fine-tuning (nats)", 1, 3
        ),
        choices_table(
            tuned,
            np.mean([each["alpha"] for each in found], axis=0),
            "What part A selects, mean over worlds",
            kinds,
        ),
        results_table(zero_shot, "Controlled transfer: ζ: − cross-entropy, zero-shot (nats)", 1, 3, kinds),
        results_table(tuned, "Controlled transfer: ζ: − cross-entropy after fine-tuning (nats)", 1, 3, kinds),
    ]
    return zero_shot, tuned, tables


def _part_b(real: Real, networks: Networks, run_dir: RunDir) -> tuple[Study, list[Table], list[str]]:
    real = replace(real, selected=networks.selected)
    sets, targets = (
        [network.name for network in each] for each in (networks.pretraining, networks.downstream)
    )
    selections = np.concatenate([selections_of(len(sets), size) for size in real.selected])

    def scored() -> dict[str, np.ndarray]:
        rng = np.random.default_rng(31)
        collections = [
            small_graphs(network, real.ego_graphs, rng, least=real.ego_least, most=real.ego_most)
            for network in (*networks.pretraining, *networks.downstream)
        ]
        return _stored(
            score_selections(
                collections[: len(sets)],
                collections[len(sets) :],
                selections,
                resolution=real.resolution,
                steps=real.alpha_steps,
                clusters=real.clusters,
            )
        )

    def one(item: int) -> dict[str, np.ndarray]:
        if item == 0:
            return run_dir.stage("real-scores", scored)
        return run_dir.stage(f"real-{item - 1}", lambda: accuracies(item - 1, networks, real, selections))

    by_score, *by_seed = in_parallel(one, range(real.seeds + 1), run_dir, "part B: scores, then seeds")
    scores = {
        name.removeprefix("score "): values[None]
        for name, values in by_score.items()
        if name.startswith("score ")
    }
    performance = np.stack([each["accuracy"] for each in by_seed])
    study = Study(sets, targets, selections, scores, performance)
    curve = np.mean([each["curve"] for each in by_seed], axis=0)
    for step in range(0, real.encoder.steps, max(1, real.encoder.steps // 50)):
        run_dir.log(step, **{"real/loss": float(curve[:-1, step].mean())})
    run_dir.figure(
        "feasibility-real",
        draw_scatter({"accuracy (%)": study}, 100.0),
        "Real networks: feasibility of each selection against the accuracy of a ridge classifier on the "
        f"frozen embeddings, mean over {real.seeds} seeds.",
    )
    run_dir.figure(
        "correlations-real",
        draw_correlations(study, over_selections=True),
        "Real networks: correlation of each score with the accuracies' mean over seeds: mean over "
        "downstream networks (bars), and each with Fisher's 95 % interval over selections (marks).",
    )
    run_dir.figure(
        "graphons-real",
        draw_graphons(by_score["graphons"], [*sets, *targets], len(sets)),
        "Real networks: block-mean graphons of 2-hop ego networks; the brighter corner is where nodes of "
        "high degree meet.",
    )
    tables = [
        real_table(study),
        selection_table(study, "Selection in part B beside the paper's: accuracy (%)", 100, 1),
        choices_table(study, by_score["alpha"], "What part B selects", sets),
        results_table(study, "Real networks: ζ: accuracy (%)", 100, 1, sets),
    ]
    reliability = split_half(study.of_selections)
    notes = [
        "Part B: split-half reliability of the accuracies over the seeds: "
        + ", ".join(f"{target} {r:.2f}" for target, r in zip(targets, reliability, strict=True))
        + ". Correlations of any score are attenuated by its root."
    ]
    notes += [note for network in (*networks.pretraining, *networks.downstream) for note in network.notes]
    if networks.stand_in:
        notes.insert(
            0,
            "The networks of part B were not found: four small ones that are embedded stand in for them, "
            "so that its claims say nothing about the paper's. Set JAXNEG_DATA to the folder that holds "
            "w2pgnn/graphs.npz.",
        )
    return study, tables, notes


def _stored(scored: Scored) -> dict[str, np.ndarray]:
    of_scores = {f"score {name}": values for name, values in scored.scores.items()}
    return of_scores | {"alpha": scored.alpha, "graphons": scored.graphons}


def _mixture_name(mixture: Mixture) -> str:
    if len(mixture) == 1:
        return f"type {next(iter(mixture))}"
    return " + ".join(f"{weight:g}·{kind}" for kind, weight in mixture.items()).replace("0.5", "½")
