"""Settings, classifiers and baselines: what is released, what is learnt from it, and what is measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from sklearn.base import BaseEstimator

from experiments.anonymity_fairness.tables import Table
from experiments.parallel import in_parallel
from experiments.run_dir import RunDir
from jaxneg.fairness import (
    Encoded,
    Setting,
    Split,
    config_keys,
    encode_released,
    fit_predict,
    group_metrics,
    measure,
    mondrian,
    optimal_lattice,
    release,
    train_test_split,
)
from jaxneg.nn import mlp

HIDDEN = 100
"""scikit-learn's default."""
NETWORKS = ("mlp", "logistic")
LIBRARIES = ("xgboost", "lightgbm", "random_forest", "knn")
BASELINES = ("random rows", "one column", "optimal lattice", "Mondrian")
GROUP = ("SPD", "EOD", "MAD", "PED", "PRD", "AOD", "demographic_parity_ratio", "equalized_odds_difference")
UTILITY = ("ACC", "f1", "Precision", "Recall", "ROC_AUC", "theil")
INDIVIDUAL = ("ASF", "ALF", "NCF")
RELEASED = ("ok", "k", "l", "t", "dropped")


@dataclass(frozen=True)
class Options:
    """How tables become numbers, and networks are trained."""

    encoding: str
    protected_in_test: str
    steps: int
    neighbours: int
    test_size: float = 0.2


class Sample(NamedTuple):
    """A table of one seed and its split."""

    table: Table
    split: Split
    seed: int


class Arm(NamedTuple):
    """What each configuration of one seed makes of its table, for one protected attribute or for all."""

    encoded: Encoded
    ok: np.ndarray
    levels: Mapping[str, np.ndarray]
    """What was reached: "k", "l", "t" and "dropped"."""


def samples(tables: Callable[[int], Table], seeds: Sequence[int], options: Options) -> list[Sample]:
    """The table of each seed with the split that scikit-learn makes of it.

    Args:
        tables: the table of a seed.
        seeds: of the splits.
        options: share of the test.

    Returns:
        One sample a seed.
    """
    made = [(tables(seed), seed) for seed in seeds]
    return [
        Sample(table, train_test_split(len(table.score), seed, options.test_size), seed)
        for table, seed in made
    ]


def anonymised(sample: Sample, settings: Sequence[Setting], options: Options, attribute: str) -> Arm:
    """The released table of each privacy setting.

    Args:
        sample: a table and its split.
        settings: privacy settings.
        options: the encoding.
        attribute: the protected attribute, which stays raw in the test if the options say so.

    Returns:
        An arm with a configuration for each setting.
    """
    found = release(sample.table.dataset, sample.split, settings)
    return _arm(sample, np.asarray(found.levels), np.asarray(found.keep), options, attribute, found._asdict())


def baseline(name: str, sample: Sample, setting: Setting, options: Options, attribute: str) -> Arm:
    """One of the baselines, beside the greedy anonymiser at a setting.

    Args:
        name: "random rows" drops as many rows as the anonymiser, and generalises nothing; "one column"
            suppresses the column with most values; "optimal lattice" and "Mondrian" reach the same k.
        sample: a table and its split.
        setting: of k-anonymity.
        options: the encoding.
        attribute: the protected attribute.

    Returns:
        An arm with one configuration.
    """
    data, split = sample.table.dataset, sample.split
    X = data.X[split.train]
    levels, keep = np.zeros((1, X.shape[1]), np.int32), np.ones((1, len(X)), bool)
    if name == "random rows":
        dropped = int(np.sum(~np.asarray(release(data, split, [setting]).keep)))
        keep[0, np.random.default_rng(sample.seed).choice(len(X), dropped, replace=False)] = False
    elif name == "one column":
        column = int(np.argmax([len(np.unique(X[:, j])) for j in range(X.shape[1])]))
        levels[0, column] = data.n_levels[column] - 1
    elif name == "optimal lattice":
        found = optimal_lattice(X, data.maps, data.n_levels, setting.k, setting.supp)
        levels, keep = found.levels[None], found.keep[None]
    else:
        return _mondrian(sample, setting.k, options)
    return _arm(sample, levels, keep, options, attribute, {})


def _arm(
    sample: Sample,
    levels: np.ndarray,
    keep: np.ndarray,
    options: Options,
    attribute: str,
    reached: Mapping[str, Any],
) -> Arm:
    data = sample.table.dataset._replace(protected=sample.table.protected[attribute][0])
    encoded = encode_released(
        data,
        sample.split,
        levels,
        keep,
        encoding=options.encoding,
        protected_in_test=options.protected_in_test,
    )
    found = {name: np.asarray(reached[name], float) for name in ("k", "l", "t") if name in reached}
    return Arm(encoded, np.any(keep, axis=1), found | {"dropped": 1 - keep.mean(axis=1)})


def _mondrian(sample: Sample, k: int, options: Options) -> Arm:
    """Each value is replaced by the mean of its part; test rows fall where the splits put them."""
    data, split = sample.table.dataset, sample.split
    nothing = np.zeros((1, data.X.shape[1]), np.int32), np.ones((1, len(split.train)), bool)
    encoded = encode_released(data, split, *nothing, encoding=options.encoding)
    train, test = np.asarray(encoded.train[0], np.float32), np.asarray(encoded.test[0], np.float32)
    counts = np.arange(len(train) + len(test)) < len(train)
    part = np.asarray(mondrian(np.concatenate([train, test]), k, counts))
    size = np.bincount(part[: len(train)])
    sums = np.stack([np.bincount(part[: len(train)], column) for column in train.T], axis=1)
    means = jnp.asarray((sums / size[:, None])[part], jnp.float32)[None]
    own = Encoded(means[:, : len(train)], means[:, len(train) :], encoded.keep)
    return Arm(own, np.ones(1, bool), {"k": np.array([size.min()], float), "dropped": np.zeros(1)})


def classify(
    classifier: str,
    chosen: Sequence[Sample],
    arms: Sequence[Arm],
    options: Options,
    run_dir: RunDir,
    description: str,
) -> np.ndarray:
    """Trains a classifier for every seed and configuration, and predicts the test rows.

    Args:
        classifier: of `NETWORKS`, all trained by one program, or of `LIBRARIES`, one after the other.
        chosen: a sample for each seed.
        arms: likewise.
        options: of training.
        run_dir: shows the progress.
        description: what is being done.

    Returns:
        Probabilities of class 1, ``[seeds, configs, test]``.
    """
    configs = len(arms[0].ok)
    y_train = [sample.table.dataset.y[sample.split.train] for sample in chosen]
    if classifier in NETWORKS:
        joined = Encoded(
            *(jnp.concatenate(parts) for parts in zip(*(arm.encoded for arm in arms), strict=True))
        )
        p = fit_predict(
            joined,
            jnp.asarray(np.repeat(np.stack(y_train), configs, axis=0)),
            config_keys([sample.seed for sample in chosen], configs),
            encoding=options.encoding,
            hidden=0,
            network=tabular_mlp if classifier == "mlp" else None,
            steps=options.steps,
            # A CPU's cache holds one small network, and not the gradients of many.
            at_once=1 if jax.default_backend() == "cpu" else None,
        )
        return np.asarray(p).reshape(len(chosen), configs, -1)
    host = [jax.tree.map(np.asarray, arm.encoded) for arm in arms]
    cells = [(number, config) for number in range(len(chosen)) for config in range(configs)]

    def fit(cell: tuple[int, int]) -> np.ndarray:
        number, config = cell
        codes, test, keep = (array[config] for array in host[number])
        return _fitted(classifier, chosen[number].seed, codes[keep], y_train[number][keep], test)

    return np.stack(in_parallel(fit, cells, run_dir, description)).reshape(len(chosen), configs, -1)


@cache
def tabular_mlp(features: int) -> Any:
    """The network of every setting: one hidden layer, Glorot normal weights."""
    return mlp(features, (HIDDEN,), (1,), kernel_init=nnx.initializers.glorot_normal())


def _fitted(name: str, seed: int, x: np.ndarray, y: np.ndarray, test: np.ndarray) -> np.ndarray:
    if len(x) == 0 or y.min() == y.max():
        return np.full(len(test), float(y[0]) if len(x) else 0.0)
    model: Any = make_classifier(name, seed)
    if name == "knn" and len(x) < model.n_neighbors:
        model.set_params(n_neighbors=len(x))
    return np.asarray(model.fit(x, y).predict_proba(test))[:, 1]


def make_classifier(name: str, seed: int) -> BaseEstimator:
    """A classifier of another library with its defaults, as the official code has them.

    Args:
        name: of `LIBRARIES`.
        seed: of the classifier.

    Returns:
        An estimator of scikit-learn's interface.

    Raises:
        ImportError: its library is not installed.
        ValueError: the name is unknown.
    """
    if name == "knn":
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier()
    if name == "random_forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(random_state=seed)
    if name not in LIBRARIES:
        raise ValueError(
            f"classifiers: expected names among {', '.join((*NETWORKS, *LIBRARIES))}, got {name!r}"
        )
    try:
        if name == "xgboost":
            from xgboost import XGBClassifier  # pyright: ignore[reportMissingImports]

            return XGBClassifier(random_state=seed, n_jobs=1)
        from lightgbm import LGBMClassifier  # pyright: ignore[reportMissingImports]

        return LGBMClassifier(random_state=seed, n_jobs=1, verbose=-1)  # pyright: ignore[reportReturnType]
    except ImportError as error:
        raise ImportError(
            f"the classifier {name!r} needs its own library ({error}); pip install 'jaxneg[trees]'"
        ) from error


_groups = jax.jit(jax.vmap(group_metrics, (None, 0, None)))


def measured(
    chosen: Sequence[Sample], arms: Sequence[Arm], p: np.ndarray, attributes: Sequence[str], options: Options
) -> dict[str, np.ndarray]:
    """Every metric for every seed and configuration.

    Args:
        chosen: a sample for each seed.
        arms: likewise.
        p: probabilities of class 1, ``[seeds, configs, test]``.
        attributes: protected attributes.
        options: number of neighbours.

    Returns:
        ``[seeds, configs]`` by name: group metrics as "race/SPD", the others as "ACC"; NaN where a setting
        was not reached.
    """
    rows: list[dict[str, np.ndarray]] = []
    for sample, arm, own in zip(chosen, arms, p, strict=True):
        tests = sample.split.test
        y = sample.table.dataset.y[tests]
        first = sample.table.protected[attributes[0]][1][tests]
        found = measure(own, arm.encoded.test, y, first, options.neighbours)
        row = {name: np.asarray(found[name], float) for name in (*UTILITY, *INDIVIDUAL)}
        for attribute in attributes:
            a = sample.table.protected[attribute][1][tests]
            groups = _groups(y, (own > 0.5).astype(np.int32), a)
            row |= {f"{attribute}/{name}": np.asarray(groups[name], float) for name in GROUP}
        row = {name: np.where(arm.ok, values, np.nan) for name, values in row.items()}
        rows.append(row | {"ok": arm.ok.astype(float)} | dict(arm.levels))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
