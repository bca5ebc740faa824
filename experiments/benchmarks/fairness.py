"""Anonymisation, privacy levels, individual fairness and the whole audit beside what the paper's code uses.

Anonymisation: ANJANA on Adult, at equal k and suppression limit; both release the same rows in the same
  classes, or
nothing is timed. Beside it stands the best transformation of the whole lattice, with its loss. Privacy
levels: pycanon on the released table. Individual fairness: scikit-learn's neighbours and the official code's
  loops, written
again without ray. The grid: ANJANA, scikit-learn's label encoder and ``MLPClassifier``, scikit-learn's scores
and those loops, setting by setting and seed by seed, as the official scripts do; ours is one call of
`audit_grid`. The peer gets our levels for its test rows, which the official code detects anew.
"""

import importlib
import math
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.anonymity_fairness.tables import Table, load_table
from experiments.bench import paired_ratio
from experiments.isolated import available_cores, in_a_process
from experiments.peers import require_same
from jaxneg.fairness import (
    Setting,
    audit_grid,
    equivalence_classes,
    generalise,
    individual_metrics,
    k_anonymise,
    optimal_lattice,
    privacy_levels,
    release,
    train_test_split,
)

PAIR_SECONDS = 60.0
"""How long the pairs of one comparison may take in all, at three pairs at least."""
PEERS = ("anjana.anonymity", "pycanon.anonymity", "sklearn.neural_network", "pandas")
KS = (*range(1, 11), 25, 50, 75, 100)
"""The paper's grid."""


class Anonymisation(NamedTuple):
    """The table that both sides anonymise."""

    table: str = "adult"
    rows: int = 30_162
    k: int = 10
    supp: float = 20.0


class Similarity(NamedTuple):
    """Size of the individual metrics; Adult has three times as many test rows."""

    rows: int = 2000
    features: int = 10
    neighbours: int = 100


class Grid(NamedTuple):
    """The audit: seven settings of COMPAS for each seed."""

    seeds: int = 1
    steps: int = 3000
    neighbours: int = 100
    rows: int = 5278


SETTINGS = (
    Setting(),
    Setting(k=2),
    Setting(k=10),
    Setting(k=100),
    Setting(k=10, l=2),
    Setting(k=10, t=0.5),
    Setting(k=10, t=0.45),
)


def run(repeats: int = 11) -> dict[str, Any]:
    """Times every comparison on one core and on all.

    Args:
        repeats: pairs of samples, fewer where a call takes long, at least 3.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` with a row for each comparison: ``ratio_median`` is the
        peer's time over ours. ``first_seconds`` is our first call, with compilation.

    Raises:
        ImportError: a peer is not installed.
        RuntimeError: the two sides' results differ.
    """
    for name in PEERS:
        _peer(name)
    cores = available_cores()
    sizes = Anonymisation(), Similarity(), Grid()
    return {
        "settings": {type(size).__name__.lower(): size._asdict() for size in sizes},
        "one_core": in_a_process(cores[:1], _times, *sizes, repeats),
        "all_cores": in_a_process(cores, _times, *sizes, repeats) if len(cores) > 1 else {},
    }


def _peer(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'fairness' measures against {name.partition('.')[0]} ({error}); pip install"
            " 'jaxneg[bench-fairness]' in an environment of its own, for ANJANA pins numpy and pandas"
        ) from error


def _times(
    anonymisation: Anonymisation, similarity: Similarity, grid: Grid, repeats: int
) -> dict[str, dict[str, Any]]:
    return {
        **anonymisation_compared(anonymisation, repeats),
        **similarity_compared(similarity, repeats),
        **grid_compared(grid, repeats),
    }


def frame_of(table: Table) -> tuple[Any, dict[str, dict[int, Any]]]:
    """A table and its hierarchies as ANJANA takes them.

    Args:
        table: codes and maps.

    Returns:
        A data frame with text labels, and hierarchies; labels of a level carry its number, so that ANJANA,
        which detects levels by their labels, finds the right ones.
    """
    pandas = _peer("pandas")
    data = table.dataset
    columns = [f"c{j}" for j in range(data.X.shape[1])]
    hierarchies = {}
    for j, column in enumerate(columns):
        levels = data.maps[j, : data.n_levels[j]]
        valid = levels[0] >= 0
        hierarchies[column] = {
            level: np.array([f"{level}:{code}" for code in labels[valid]])
            for level, labels in enumerate(levels)
        }
    frame = pandas.DataFrame(
        {column: hierarchies[column][0][data.X[:, j]] for j, column in enumerate(columns)} | {"s": data.y}
    )
    return frame, hierarchies


def anonymisation_compared(size: Anonymisation, repeats: int) -> dict[str, dict[str, Any]]:
    """K-anonymity beside ANJANA, and privacy levels beside pycanon.

    Args:
        size: of the table.
        repeats: pairs of samples.

    Returns:
        A row for each comparison.
    """
    anjana, pycanon = (_peer(name) for name in PEERS[:2])
    table, _ = load_table(size.table)
    table = table.rows(np.arange(min(size.rows, len(table.score))))
    data = table.dataset
    frame, hierarchies = frame_of(table)
    columns = list(hierarchies)
    X, s = jnp.asarray(data.X), jnp.asarray(data.y)
    maps, n_levels = data.maps, data.n_levels

    def ours() -> Any:
        return k_anonymise(X, s, maps, n_levels, size.k, size.supp, num_values=2)

    def all_at_once() -> Any:
        return k_anonymise(X, s, maps, n_levels, np.array(KS), size.supp, num_values=2)

    def peer() -> Any:
        return anjana.k_anonymity(frame, [], columns, size.k, size.supp, hierarchies)

    first = _seconds(ours)
    found, released = ours(), peer()
    keep = np.asarray(found.keep)
    G = np.asarray(generalise(X, maps, found.levels))[keep]
    same = np.unique(G, axis=0, return_counts=True)[1]
    theirs = released.groupby(columns).size().to_numpy()
    if len(released) != keep.sum() or sorted(same) != sorted(theirs):
        raise RuntimeError(
            f"anonymisation: we release {keep.sum()} rows in {len(same)} classes, ANJANA {len(released)} in"
            f" {len(theirs)}: they are not the same, and not timed"
        )
    extra = {
        "k": int(found.k),
        "rows": int(keep.sum()),
        "loss": loss_of(data, found.levels, keep),
        "peer_loss": 0.0,
    }
    extra["peer_loss"] = extra["loss"]  # the same rows in the same classes
    began = time.perf_counter()
    best = optimal_lattice(X, maps, n_levels, size.k, size.supp)
    lattice_seconds = time.perf_counter() - began
    measured = {"k_anonymity_beside_anjana": _compared(ours, peer, repeats, extra | {"first_seconds": first})}
    row = measured["k_anonymity_beside_anjana"]
    jax.block_until_ready(all_at_once())
    many = _seconds(all_at_once)
    measured["fourteen_k_beside_fourteen_calls"] = {
        "ours_seconds": many,
        "peer_seconds": len(KS) * row["peer_seconds"],
        "ratio_median": len(KS) * row["peer_seconds"] / many,
    }
    measured["optimal_lattice_beside_anjana"] = {
        "ours_seconds": lattice_seconds,
        "peer_seconds": row["peer_seconds"],
        "ratio_median": row["peer_seconds"] / lattice_seconds,
        "loss": best.loss,
        "peer_loss": extra["loss"],
        "evaluated": best.evaluated,
    }
    codes, kept_s = jnp.asarray(G), s[keep]
    cards = G.max(axis=0) + 1
    compiled = jax.jit(lambda G, s: privacy_levels(equivalence_classes(G, cards)[0], s, 2))
    levels = compiled(codes, kept_s)

    def peer_levels() -> tuple[Any, ...]:
        return (
            pycanon.k_anonymity(released, columns),
            pycanon.l_diversity(released, columns, ["s"]),
            pycanon.t_closeness(released, columns, ["s"]),
        )

    apart = require_same(
        "privacy levels",
        np.array([levels.k, levels.l, levels.t_ordered], float),
        np.array(peer_levels(), float),
    )
    measured["k_l_t_beside_pycanon"] = _compared(
        lambda: compiled(codes, kept_s), peer_levels, repeats, {"apart": apart}
    )
    return measured


def loss_of(data: Any, levels: Any, keep: np.ndarray) -> float:
    """Generalisation loss of a released table, as `optimal_lattice` has it.

    Args:
        data: the table.
        levels: of its columns.
        keep: the released rows.
    """
    total = 0.0
    for j, level in enumerate(np.asarray(levels)):
        labels, valid = data.maps[j, level], data.maps[j, 0] >= 0
        sizes = np.bincount(labels[valid])[labels[data.X[keep, j]]]
        total += np.sum((sizes - 1) / max(valid.sum() - 1, 1)) + np.sum(~keep)
    return float(total / data.X.size)


def official_individual(p: np.ndarray, z: np.ndarray, k: int) -> tuple[float, float, float]:
    """ASF, ALF and NCF by scikit-learn's neighbours and the official code's loops, without ray.

    Args:
        p: probabilities of both classes.
        z: features.
        k: neighbours.

    Returns:
        The three metrics; which of equally near rows are neighbours is scikit-learn's choice.
    """
    neighbors = _peer("sklearn.neighbors")
    entropy = _peer("scipy.stats").entropy
    distances, indices = neighbors.NearestNeighbors(n_neighbors=k + 1).fit(z).kneighbors(z)
    similar, consistent, worst = [], [], 0.0
    for i in range(len(z)):
        differences = [np.abs(p[i] - p[j]) for j in indices[i][1:]]
        consistent.append(np.mean(differences))
        for difference, distance in zip(differences, distances[i][1:], strict=True):
            similar.append(difference * max(distance, 1e-6))
        for j, distance in zip(indices[i][:k], distances[i][:k], strict=True):
            if distance > 1e-10:
                worst = max(worst, entropy(p[i], p[j]) / distance)
    return float(np.mean(similar)), float(worst), float(np.mean(consistent))


def similarity_compared(size: Similarity, repeats: int) -> dict[str, dict[str, Any]]:
    """The individual metrics beside the official loops, on features without ties.

    Args:
        size: of the table.
        repeats: pairs of samples.

    Returns:
        One row.
    """
    rng = np.random.default_rng(0)
    z = rng.normal(size=(size.rows, size.features)).astype(np.float32)
    p1 = 1 / (1 + np.exp(-z[:, 0]))
    p = np.stack([1 - p1, p1], axis=1)
    arrays = jnp.asarray(p), jnp.asarray(z)

    def ours() -> Any:
        return individual_metrics(*arrays, size.neighbours)

    def peer() -> Any:
        return official_individual(p, z, size.neighbours)

    first, found, theirs = _seconds(ours), ours(), peer()
    apart = max(
        require_same(f"individual metrics, {name}", np.asarray(mine), np.asarray(other))
        for name, mine, other in zip(found._fields, found, theirs, strict=True)
    )
    return {"individual_metrics": _compared(ours, peer, repeats, {"apart": apart, "first_seconds": first})}


def grid_compared(size: Grid, repeats: int) -> dict[str, dict[str, Any]]:
    """The whole audit beside the loop over settings and seeds.

    Args:
        size: of the grid.
        repeats: pairs of samples.

    Returns:
        One row, with the mean accuracy and gap of both sides: their networks are drawn from other random
        numbers.
    """
    table, _ = load_table("compas")
    table = table.rows(np.arange(min(size.rows, len(table.score))))
    seeds = range(size.seeds)
    frame, hierarchies = frame_of(table)
    levels = {
        seed: np.asarray(release(table.dataset, train_test_split(len(frame), seed), SETTINGS).levels)
        for seed in seeds
    }

    def ours() -> dict[str, np.ndarray]:
        return audit_grid(
            table.dataset,
            SETTINGS,
            seeds,
            steps=size.steps,
            encoding="lexicographic",
            neighbours=size.neighbours,
            at_once=1 if jax.default_backend() == "cpu" else None,
        )

    def peer() -> dict[str, np.ndarray]:
        return peer_audit(table, frame, hierarchies, levels, size.neighbours)

    first = _seconds(ours)
    found, theirs = ours(), peer()
    if not np.array_equal(found["dropped"], theirs["dropped"]):
        raise RuntimeError("grid: the two sides release other rows: they are not the same, and not timed")
    extra = {"models": len(SETTINGS) * size.seeds, "first_seconds": first}
    for name in ("ACC", "SPD"):
        extra[f"ours_{name}"] = float(np.mean(np.abs(found[name])))
        extra[f"peer_{name}"] = float(np.mean(np.abs(theirs[name])))
    return {"grid_beside_scikit_learn": _compared(ours, peer, repeats, extra)}


def peer_audit(
    table: Table, frame: Any, hierarchies: Any, levels: dict[int, np.ndarray], neighbours: int
) -> dict[str, np.ndarray]:
    """The official pipeline, one setting after the other.

    Args:
        table: for the protected attribute.
        frame: the table with text labels.
        hierarchies: as ANJANA takes them.
        levels: of each setting by seed, which the test rows get.
        neighbours: of the individual metrics.

    Returns:
        ``ACC``, ``SPD``, ``NCF`` and ``dropped``, ``[seeds, settings]``.
    """
    anjana = _peer("anjana.anonymity")
    make = _peer("sklearn.neural_network").MLPClassifier
    encoder = _peer("sklearn.preprocessing").LabelEncoder
    pandas = _peer("pandas")
    columns = list(hierarchies)
    rows = []
    for seed, of_seed in levels.items():
        split = train_test_split(len(frame), seed)
        train, test = (
            frame.iloc[split.train].reset_index(drop=True),
            frame.iloc[split.test].reset_index(drop=True),
        )
        row = []
        for setting, own in zip(SETTINGS, of_seed, strict=True):
            arguments = [], columns, setting.k, setting.supp, hierarchies
            if setting.l > 1:
                released = anjana.l_diversity(
                    train, [], columns, "s", setting.k, setting.l, setting.supp, hierarchies
                )
            elif setting.t < math.inf:
                released = anjana.t_closeness(
                    train, [], columns, "s", setting.k, setting.t, setting.supp, hierarchies
                )
            else:
                released = anjana.k_anonymity(train, *arguments)
            seen = test.copy()
            for column, level in zip(columns, own, strict=True):
                lookup = dict(zip(hierarchies[column][0], hierarchies[column][int(level)], strict=True))
                seen[column] = test[column].map(lookup)
            joined = pandas.concat([released[columns], seen[columns]])
            codes = np.stack([encoder().fit_transform(joined[column]) for column in columns], axis=1)
            x, z = codes[: len(released)], codes[len(released) :]
            mean, deviation = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that 200 epochs were not enough
                model = make(random_state=seed).fit((x - mean) / deviation, released["s"].to_numpy(int))
                p = model.predict_proba((z - mean) / deviation)
            yhat, y = (p[:, 1] > 0.5).astype(int), table.dataset.y[split.test]
            a = table.dataset.a[split.test]
            *_, ncf = official_individual(p, z.astype(float), neighbours)
            gap = yhat[a == 1].mean() - yhat[a == 0].mean()
            row.append((np.mean(yhat == y), gap, ncf, 1 - len(released) / len(train)))
        rows.append(row)
    found = np.asarray(rows)
    return {name: found[..., place] for place, name in enumerate(("ACC", "SPD", "NCF", "dropped"))}


def _seconds(program: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - began


def _compared(
    ours: Callable[[], Any], peer: Callable[[], Any], repeats: int, extra: dict[str, Any]
) -> dict[str, Any]:
    return {**paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS), **extra}
