"""The audit: anonymise, train and measure for a whole grid of settings and seeds.

The pipeline of Arcolezi et al., arXiv:2505.07985: the training rows alone are anonymised, the levels that
were found are applied to the test rows, labels are coded, a classifier is trained and its decisions on the
test rows are measured by their raw protected attribute.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxneg.fairness.arguments import Data, in_codes, integer_codes, one_of
from jaxneg.fairness.encoding import ENCODINGS, Split, encode, features_of, train_test_split
from jaxneg.fairness.greedy import anonymise
from jaxneg.fairness.group_metrics import group_metrics
from jaxneg.fairness.hierarchies import table_and_maps
from jaxneg.fairness.individual_metrics import individual_metrics
from jaxneg.fairness.training import predict_grid, train_grid

PROTECTED_IN_TEST = ("generalised", "raw")


class Dataset(NamedTuple):
    """A table to audit.

    Attributes:
      X: Codes of base values; all columns are quasi-identifiers.
      y: Label, 0 or 1, which is also the sensitive value.
      a: Protected attribute, 0 or 1.
      maps: Hierarchies, as :func:`compose_hierarchy` gives them.
      n_levels: Number of levels of each column.
      ranks: Places of the labels for each encoding but one-hot, as :func:`label_ranks` gives them.
      protected: Which column the protected attribute is.
    """

    X: Int[np.ndarray, "rows columns"]
    y: Int[np.ndarray, " rows"]
    a: Int[np.ndarray, " rows"]
    maps: Int[np.ndarray, "columns levels values"]
    n_levels: Int[np.ndarray, " columns"]
    ranks: dict[str, Int[np.ndarray, "columns levels values"]]
    protected: int


class Setting(NamedTuple):
    """A privacy setting: k-anonymity, with l-diversity where l > 1, with t-closeness where t is finite.

    Attributes:
      k: Least number of rows of a class; 1 leaves the table as it is.
      l: Least number of different labels of a class.
      t: Largest ordered distance of a class to the released table.
      supp: Rows that may be dropped, in percent.
    """

    k: int = 1
    l: int = 1
    t: float = float("inf")
    supp: float = 20.0


class Released(NamedTuple):
    """What each configuration releases of the training rows of one seed.

    Attributes:
      levels: Level of each column.
      keep: Whether each training row is released.
      ok: Whether the setting was reached.
      k: Rows of the smallest class.
      l: Least number of different labels of a class.
      t: Largest ordered distance of a class to the released table.
    """

    levels: Int[Array, "configs columns"]
    keep: Bool[Array, "configs train"]
    ok: Bool[Array, " configs"]
    k: Int[Array, " configs"]
    l: Int[Array, " configs"]
    t: Float[Array, " configs"]


class Encoded(NamedTuple):
    """Training and test rows of each configuration as integer codes.

    Attributes:
      train: Codes of the training rows.
      test: Codes of the test rows.
      keep: Whether each training row is released.
    """

    train: Int[Array, "configs train columns"]
    test: Int[Array, "configs test columns"]
    keep: Bool[Array, "configs train"]


def release(dataset: Dataset, split: Split, configs: Sequence[Setting]) -> Released:
    """Anonymises the training rows to every setting.

    Args:
      dataset: The table.
      split: Its rows.
      configs: Privacy settings.

    Returns:
      What each setting releases.

    Raises:
      ValueError: If there is no setting, or as :func:`anonymise`.
      TypeError: As :func:`anonymise`.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import Dataset, Setting, Split, compose_hierarchy, release
      >>> column = compose_hierarchy([[["a", "*"], ["b", "*"]]])
      >>> codes = np.array([0, 1, 1, 1])
      >>> dataset = Dataset(codes[:, None], codes, codes, *column, {}, 0)
      >>> split = Split(np.arange(3), np.array([3]))
      >>> release(dataset, split, [Setting(k=1), Setting(k=2, supp=0)]).levels.tolist()
      [[0], [1]]
    """
    if not configs:
        raise ValueError("configs: expected at least one setting, got none")
    k, l, t, supp = (np.array([getattr(config, name) for config in configs]) for name in Setting._fields)
    found = anonymise(
        dataset.X[split.train],
        dataset.y[split.train],
        dataset.maps,
        dataset.n_levels,
        k,
        l,
        t,
        supp,
        num_values=2,
    )
    return Released(*found)


def encode_released(
    dataset: Dataset,
    split: Split,
    levels: Int[Data, "configs columns"],
    keep: Bool[Data, "configs train"],
    *,
    encoding: str = "rank",
    protected_in_test: str = "generalised",
) -> Encoded:
    """The released training rows and the test rows of each configuration as integer codes.

    Args:
      dataset: The table.
      split: Its rows.
      levels: Of each configuration.
      keep: The training rows that each configuration releases.
      encoding: "lexicographic", as the official code; "rank"; or "onehot", whose codes are those of "rank".
      protected_in_test: "generalised", or "raw" as the official code: the protected column of the test rows
        then stays at level 0, also where the training rows have it generalised.

    Returns:
      Codes.

    Raises:
      ValueError: If an option is unknown.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import Dataset, Split, compose_hierarchy, encode_released, label_ranks
      >>> column = [[["2", "*"], ["10", "*"]]]
      >>> codes = np.array([0, 1, 1])
      >>> ranks = {"rank": label_ranks(column)}
      >>> dataset = Dataset(codes[:, None], codes, codes, *compose_hierarchy(column), ranks, 0)
      >>> split, keep = Split(np.array([0, 1]), np.array([2])), np.ones((1, 2), bool)
      >>> encode_released(dataset, split, np.array([[1]]), keep).train.tolist()
      [[[0], [0]]]
    """
    one_of("encoding", encoding, ENCODINGS)
    one_of("protected_in_test", protected_in_test, PROTECTED_IN_TEST)
    ranks = dataset.ranks["rank" if encoding == "onehot" else encoding]
    levels, test_levels = jnp.asarray(levels), jnp.asarray(levels)
    if protected_in_test == "raw":
        test_levels = test_levels.at[:, dataset.protected].set(0)
    train, test = _encode(
        jnp.asarray(dataset.X[split.train]),
        jnp.asarray(dataset.X[split.test]),
        jnp.asarray(ranks),
        levels,
        test_levels,
        jnp.asarray(keep),
        num_ranks=int(ranks.max()) + 1,
    )
    return Encoded(train, test, jnp.asarray(keep))


@partial(jax.jit, static_argnames="num_ranks")
def _encode(
    X: Array, X_test: Array, ranks: Array, levels: Array, test_levels: Array, keep: Array, *, num_ranks: int
) -> Any:
    return lax.map(
        lambda each: encode(X, X_test, ranks, each[0], each[1], each[2], num_ranks),
        (levels, test_levels, keep),
    )


def fit_predict(
    encoded: Encoded,
    y_train: Int[Data, " train"],
    keys: PRNGKeyArray,
    *,
    encoding: str = "rank",
    hidden: int | Sequence[int] = 100,
    steps: int = 3000,
    at_once: int | None = None,
    mesh: Mesh | None = None,
    network: Any = None,
    **options: Any,
) -> Float[Array, "configs test"]:
    """Trains a network for each configuration and predicts the test rows.

    Args:
      encoded: Codes, as :func:`encode_released` gives them.
      y_train: Labels of the training rows.
      keys: A key for each configuration.
      encoding: "onehot", or another one: standardised codes.
      hidden: As in :func:`train_grid`.
      steps: As in :func:`train_grid`.
      at_once: As in :func:`train_grid`.
      mesh: As in :func:`train_grid`.
      network: As in :func:`train_grid`; or a function of the number of features that gives one.
      **options: Others of :func:`train_grid`.

    Returns:
      Probabilities of class 1.

    Raises:
      ValueError: As :func:`train_grid`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.fairness import Encoded, fit_predict
      >>> codes = jnp.zeros((3, 8, 2), int)
      >>> encoded = Encoded(codes, codes[:, :5], jnp.ones((3, 8), bool))
      >>> keys = jax.random.split(jax.random.key(0), 3)
      >>> jax.eval_shape(fit_predict, encoded, jnp.ones(8, int), keys).shape
      (3, 5)
    """
    one_of("encoding", encoding, ENCODINGS)
    num_codes = 1 + int(max(encoded.train.max(), encoded.test.max())) if encoding == "onehot" else 0
    train, test = _features(*encoded, encoding=encoding, num_codes=num_codes)
    made = network(train.shape[-1]) if callable(network) else network
    weight = encoded.keep.astype(jnp.float32)
    params = train_grid(
        train,
        jnp.asarray(y_train),
        weight,
        keys,
        hidden,
        steps,
        network=made,
        at_once=at_once,
        mesh=mesh,
        **options,
    )
    return predict_grid(params, test, hidden, network=made)


@partial(jax.jit, static_argnames=("encoding", "num_codes"))
def _features(train: Array, test: Array, keep: Array, *, encoding: str, num_codes: int) -> Any:
    of_config = partial(features_of, encoding=encoding, num_codes=num_codes)
    return jax.vmap(of_config)(train, test, keep)


def measure(
    p: Float[Data, "configs test"],
    z: Float[Data, "configs test columns"],
    y: Int[Data, " test"],
    a: Int[Data, " test"],
    neighbours: int = 100,
    ties: str = "index",
) -> dict[str, Float[Array, "configs *extra"]]:
    """Every group and individual metric of each configuration's predictions.

    Args:
      p: Probabilities of class 1; decisions are ``p > 0.5``.
      z: Features in which neighbours are near: integer codes, unscaled.
      y: Labels.
      a: Raw protected attribute.
      neighbours: As ``k`` of :func:`individual_metrics`.
      ties: As in :func:`individual_metrics`.

    Returns:
      What :func:`group_metrics` and :func:`individual_metrics` return, a row for each configuration.

    Raises:
      ValueError: As these two.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.fairness import measure
      >>> p, y = jnp.array([[0.1, 0.9, 0.8]]), jnp.array([0, 1, 1])
      >>> found = measure(p, jnp.array([[[0], [1], [2]]]), y, jnp.array([0, 1, 1]), neighbours=2)
      >>> float(found["SPD"][0]), float(found["ACC"][0])
      (1.0, 1.0)
    """
    return _measure(
        jnp.asarray(p), jnp.asarray(z), jnp.asarray(y), jnp.asarray(a), neighbours=neighbours, ties=ties
    )


@partial(jax.jit, static_argnames=("neighbours", "ties"))
def _measure(p: Array, z: Array, y: Array, a: Array, *, neighbours: int, ties: str) -> dict[str, Array]:
    def of_config(each: tuple[Array, Array]) -> dict[str, Array]:
        p, z = each
        both = jnp.stack([1 - p, p], axis=1)
        individual = individual_metrics(both, z, neighbours, ties=ties)._asdict()
        return {**group_metrics(y, (p > 0.5).astype(jnp.int32), a), **individual}

    return lax.map(of_config, (p, z))


def audit_grid(
    dataset: Dataset,
    configs: Sequence[Setting],
    seeds: Sequence[int],
    *,
    hidden: int | Sequence[int] = 100,
    steps: int = 3000,
    encoding: str = "rank",
    protected_in_test: str = "generalised",
    neighbours: int = 100,
    ties: str = "index",
    test_size: float = 0.2,
    at_once: int | None = None,
    mesh: Mesh | None = None,
    network: Any = None,
) -> dict[str, np.ndarray]:
    """Anonymises to every setting, trains a classifier for every setting and seed, and measures them.

    Args:
      dataset: The table.
      configs: Privacy settings.
      seeds: Of the splits, which are scikit-learn's, and of the networks.
      hidden: Widths of hidden layers; 0 is logistic regression.
      steps: Updates of each network.
      encoding: "lexicographic", "rank" or "onehot".
      protected_in_test: "generalised" or "raw".
      neighbours: Neighbours of the individual metrics.
      ties: As in :func:`individual_metrics`.
      test_size: Share of the test rows.
      at_once: As in :func:`train_grid`.
      mesh: As in :func:`train_grid`; spreads seeds times settings.
      network: As in :func:`fit_predict`.

    Returns:
      A table: each metric ``[seeds, configs]`` (``CM`` with two more axes), NaN where a setting was not
      reached; and
      ``ok``, ``k``, ``l``, ``t`` as achieved, ``dropped``, the share of the training rows that was dropped,
      and
      ``levels [seeds, configs, columns]``.

    Raises:
      ValueError: If the table's arrays do not fit each other, there is no setting or no seed, or an option is
        unknown.
      TypeError: If the table does not hold integers.

    Source:
      arXiv:2505.07985, Section 4.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import Dataset, Setting, audit_grid, compose_hierarchy, label_ranks
      >>> column = [[[str(age), "*"] for age in range(4)]]
      >>> X = np.arange(40)[:, None] % 4
      >>> y = (X[:, 0] > 1).astype(int)
      >>> dataset = Dataset(X, y, X[:, 0] % 2, *compose_hierarchy(column), {"rank": label_ranks(column)}, 0)
      >>> found = audit_grid(dataset, [Setting(), Setting(k=20)], [0], hidden=0, steps=200, neighbours=3)
      >>> found["ACC"].shape, found["levels"][0].tolist()
      ((1, 2), [[0], [1]])
    """
    X, _, _ = table_and_maps(dataset.X, dataset.maps, dataset.n_levels, "n_levels")
    for name in ("y", "a"):
        codes = integer_codes(name, getattr(dataset, name), 1)
        if codes.shape[0] != X.shape[0]:
            raise ValueError(
                f"{name}: expected one number for each of {X.shape[0]} rows, got {codes.shape[0]}"
            )
        in_codes(name, codes, 2)
    for name, values in (("configs", configs), ("seeds", seeds)):
        if not len(values):
            raise ValueError(f"{name}: expected at least one, got none")
    one_of("encoding", encoding, ENCODINGS)
    one_of("protected_in_test", protected_in_test, PROTECTED_IN_TEST)
    splits = [train_test_split(X.shape[0], seed, test_size) for seed in seeds]
    released = [release(dataset, split, configs) for split in splits]
    encoded = [
        encode_released(
            dataset, split, of.levels, of.keep, encoding=encoding, protected_in_test=protected_in_test
        )
        for split, of in zip(splits, released, strict=True)
    ]
    joined = Encoded(*(jnp.concatenate(arrays) for arrays in zip(*encoded, strict=True)))
    y_train = np.repeat(np.stack([dataset.y[split.train] for split in splits]), len(configs), axis=0)
    p = fit_predict(
        joined,
        jnp.asarray(y_train),
        config_keys(seeds, len(configs)),
        encoding=encoding,
        hidden=hidden,
        steps=steps,
        at_once=at_once,
        mesh=mesh,
        network=network,
    ).reshape(len(seeds), len(configs), -1)
    rows = []
    for number, (split, of) in enumerate(zip(splits, released, strict=True)):
        metrics = measure(
            p[number], encoded[number].test, dataset.y[split.test], dataset.a[split.test], neighbours, ties
        )
        rows.append(audit_row(metrics, of))
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def config_keys(seeds: Sequence[int], configs: int) -> PRNGKeyArray:
    """A key for each seed and configuration: the same for a seed whatever other seeds there are."""
    keys = [jax.random.split(jax.random.key(seed), configs) for seed in seeds]
    return jnp.concatenate(keys)


def audit_row(metrics: dict[str, Array], released: Released) -> dict[str, np.ndarray]:
    """Metrics of a seed with what was released, NaN where a setting was not reached."""
    ok = np.asarray(released.ok)
    table = {}
    for name, values in metrics.items():
        array = np.asarray(values, np.float64)
        table[name] = np.where(ok.reshape(-1, *(1,) * (array.ndim - 1)), array, np.nan)
    return table | {
        "ok": ok,
        "k": np.asarray(released.k),
        "l": np.asarray(released.l),
        "t": np.asarray(released.t),
        "dropped": 1 - np.asarray(released.keep).mean(axis=1),
        "levels": np.asarray(released.levels),
    }
