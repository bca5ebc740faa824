"""Group fairness: how the decisions of a classifier differ between two groups.

Names and signs are those of Arcolezi et al., arXiv:2505.07985, Section 3, and its code: signed differences,
group 1 minus group 0. 0 / 0 is 0, as in scikit-learn.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxneg.fairness.arguments import Data, in_codes, integer_codes, one_of, row_weight, wide

KINDS = ("SPD", "EOD", "PED", "MAD")


def group_table(
    y: Int[Data, " rows"],
    yhat: Int[Data, " rows"],
    a: Int[Data, " rows"],
    num_groups: int = 2,
    weight: Float[Data, " rows"] | None = None,
) -> dict[str, Float[Array, " groups"]]:
    """Rates of each group.

    ``selection_rate = P(yhat = 1), TPR = P(yhat = 1 | y = 1), FPR = P(yhat = 1 | y = 0),
    precision = P(y = 1 | yhat = 1), accuracy = P(yhat = y)``; 0 where nothing is counted

    Args:
      y: Labels, 0 or 1.
      yhat: Decisions, 0 or 1.
      a: Group of each row.
      num_groups: Number of groups.
      weight: Of each row, 0 where it is left out; 1 by default.

    Returns:
      ``count``, ``positives``, ``negatives`` and the rates, one number a group.

    Raises:
      ValueError: If shapes differ, or a known code is out of range.
      TypeError: If labels, decisions or groups are not integers.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import group_table
      >>> group_table(np.array([1, 0, 1]), np.array([1, 0, 0]), np.array([0, 0, 1]))["TPR"].tolist()
      [1.0, 0.0]
    """
    arrays = {"y": y, "yhat": yhat, "a": a}
    codes = {name: integer_codes(name, _as_integers(values), 1) for name, values in arrays.items()}
    y, yhat, a = codes.values()
    if not y.shape == yhat.shape == a.shape:
        raise ValueError(
            f"y, yhat, a: expected equally many rows, got {y.shape[0]}, {yhat.shape[0]} and {a.shape[0]}"
        )
    for name, size in (("y", 2), ("yhat", 2), ("a", num_groups)):
        in_codes(name, codes[name], size)
    weight = row_weight("weight", weight, y.shape[0])
    return _group_table(y, yhat, a, weight, num_groups=num_groups)


@partial(jax.jit, static_argnames="num_groups")
def _group_table(y: Array, yhat: Array, a: Array, weight: Array, *, num_groups: int) -> dict[str, Array]:
    cells = jnp.zeros((num_groups, 2, 2), weight.dtype).at[a, y, yhat].add(weight)
    tn, fp, fn, tp = cells[:, 0, 0], cells[:, 0, 1], cells[:, 1, 0], cells[:, 1, 1]
    count = tn + fp + fn + tp
    return {
        "count": count,
        "positives": fn + tp,
        "negatives": tn + fp,
        "selection_rate": _ratio(fp + tp, count),
        "TPR": _ratio(tp, fn + tp),
        "FPR": _ratio(fp, tn + fp),
        "precision": _ratio(tp, fp + tp),
        "accuracy": _ratio(tn + tp, count),
    }


def group_metrics(
    y: Int[Data, " rows"],
    yhat: Int[Data, " rows"],
    a: Int[Data, " rows"],
    weight: Float[Data, " rows"] | None = None,
) -> dict[str, Array]:
    """All metrics of decisions for two groups, and their utility.

    With rates of group 1 minus those of group 0: ``SPD`` of selection, ``EOD`` of TPR, ``PED`` of FPR,
    ``PRD`` of precision, ``MAD`` of accuracy; ``AOD = (EOD + PED) / 2``; ``theil = mean (b / mu) ln(b / mu)``
    with
    ``b = yhat - y + 1`` and mu its mean.

    Args:
      y: Labels, 0 or 1.
      yhat: Decisions, 0 or 1.
      a: Protected attribute, 0 or 1.
      weight: Of each row, 0 where it is left out; 1 by default.

    Returns:
      Scalars: ``SPD``, ``EOD``, ``MAD``, ``PED``, ``PRD``, ``AOD``, ``theil``; as fairlearn has them
      ``demographic_parity_difference``, ``demographic_parity_ratio``, ``equalized_odds_difference``,
      ``equalized_odds_ratio`` (a ratio of 0 to 0 is 1); utility ``ACC``, ``f1``, ``Precision``, ``Recall``,
      ``ROC_AUC`` of the decision, which is the mean of TPR and TNR; ``CM = [[TN, FP], [FN, TP]]``; and
      ``PED_defined``, false if a group has no negatives, where the official code gives NaN and this 0.

    Raises:
      ValueError: As :func:`group_table`.
      TypeError: As :func:`group_table`.

    Source:
      arXiv:2505.07985, Section 3; Speicher et al. 2018, doi:10.1145/3219819.3220046, for the Theil index.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import group_metrics
      >>> found = group_metrics(np.array([1, 0, 1, 0]), np.array([1, 1, 1, 0]), np.array([1, 1, 0, 0]))
      >>> float(found["SPD"]), float(found["PED"])
      (0.5, 1.0)
    """
    groups = group_table(y, yhat, a, 2, weight)
    weight = row_weight("weight", weight, jnp.shape(y)[0])
    return _group_metrics(groups, jnp.asarray(y), jnp.asarray(yhat), weight)


@jax.jit
def _group_metrics(groups: dict[str, Array], y: Array, yhat: Array, weight: Array) -> dict[str, Array]:
    y, yhat = y.astype(jnp.int32), yhat.astype(jnp.int32)
    cells = jnp.zeros((2, 2), weight.dtype).at[y, yhat].add(weight)
    (tn, fp), (fn, tp) = cells
    total = jnp.sum(weight)
    selection, tpr, fpr = (groups[name] for name in ("selection_rate", "TPR", "FPR"))

    def gap(name: str) -> Array:
        return groups[name][1] - groups[name][0]

    benefit = wide(yhat - y + 1).astype(weight.dtype)
    mean = _ratio(jnp.sum(weight * benefit), total)
    relative = jnp.where(benefit > 0, benefit / jnp.where(mean > 0, mean, 1), 1)
    eod, ped = gap("TPR"), gap("FPR")
    precision, recall, specificity = _ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "SPD": gap("selection_rate"),
        "EOD": eod,
        "MAD": gap("accuracy"),
        "PED": ped,
        "PRD": gap("precision"),
        "AOD": (eod + ped) / 2,
        "theil": _ratio(jnp.sum(weight * relative * jnp.log(relative)), total),
        "demographic_parity_difference": jnp.abs(gap("selection_rate")),
        "demographic_parity_ratio": _smaller_over_larger(selection),
        "equalized_odds_difference": jnp.maximum(jnp.abs(eod), jnp.abs(ped)),
        "equalized_odds_ratio": jnp.minimum(_smaller_over_larger(tpr), _smaller_over_larger(fpr)),
        "ACC": _ratio(tn + tp, total),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "Precision": precision,
        "Recall": recall,
        "ROC_AUC": (recall + specificity) / 2,
        "CM": cells,
        "PED_defined": jnp.all(groups["negatives"] > 0),
    }


def soft_group_gap(
    logits: Float[Data, " rows"],
    y: Int[Data, " rows"],
    a: Int[Data, " rows"],
    kind: str = "SPD",
    weight: Float[Data, " rows"] | None = None,
) -> Float[Array, ""]:
    """A group metric of probabilities in the place of decisions: a penalty that has a gradient.

    ``mean of sigmoid(logits) over group 1 minus over group 0``, over all rows ("SPD"), those with y = 1
    ("EOD") or with y = 0 ("PED"); "MAD" takes the probability of the right label

    Args:
      logits: Of class 1.
      y: Labels, 0 or 1.
      a: Protected attribute, 0 or 1.
      kind: "SPD", "EOD", "PED" or "MAD".
      weight: Of each row, 0 where it is left out; 1 by default.

    Returns:
      A signed scalar, in float32 or wider; the penalty is its square or absolute value.

    Raises:
      ValueError: If the kind is unknown, or shapes differ.

    Source:
      Ours; the metrics of :func:`group_metrics`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.fairness import soft_group_gap
      >>> float(soft_group_gap(jnp.array([0.0, -100.0]), jnp.array([1, 1]), jnp.array([1, 0])))
      0.5
    """
    one_of("kind", kind, KINDS)
    logits, y, a = wide(jnp.asarray(logits)), jnp.asarray(y), jnp.asarray(a)
    if not logits.shape == y.shape == a.shape or logits.ndim != 1:
        raise ValueError(
            f"logits, y, a: expected equally many rows, got shapes {logits.shape}, {y.shape}, {a.shape}"
        )
    weight = row_weight("weight", weight, logits.shape[0]).astype(logits.dtype)
    p = jax.nn.sigmoid(jnp.where(y == 0, -logits, logits) if kind == "MAD" else logits)
    counted = {"EOD": y == 1, "PED": y == 0}.get(kind, True)

    def mean(group: int) -> Array:
        chosen = jnp.where(counted & (a == group), weight, 0)
        return _ratio(jnp.sum(chosen * p), jnp.sum(chosen))

    return mean(1) - mean(0)


def _as_integers(values: Any) -> Array:
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    return values.astype(jnp.int32) if values.dtype == bool else values  # pyright: ignore


def _ratio(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1), 0)


def _smaller_over_larger(rates: Array) -> Array:
    return jnp.where(jnp.max(rates) > 0, jnp.min(rates) / jnp.where(jnp.max(rates) > 0, jnp.max(rates), 1), 1)
