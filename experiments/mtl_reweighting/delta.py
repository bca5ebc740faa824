"""The measures of the trained parts: a multi-task network beside single-task ones, and its rank."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.claims import mean_interval
from jaxneg.mtl import delta_m, mean_rank


def increases(
    errors: Float[np.ndarray, "*methods seeds tasks"], single: Float[np.ndarray, "seeds tasks"]
) -> Float[np.ndarray, "*methods seeds"]:
    """``delta_m``: the mean over the tasks of the relative increase of the test error, in percent.

    Args:
        errors: of the multi-task networks.
        single: of the single-task networks of the same seeds.

    Returns:
        One percentage for each method and seed; below 0 is better than single-task networks.

    Example:
        >>> import numpy as np
        >>> increases(np.array([[[1.5, 2.0]]]), np.array([[1.0, 2.0]])).tolist()
        [[25.0]]
    """
    higher_is_better = jnp.zeros(single.shape[-1], bool)
    of_seeds = [
        delta_m(jnp.asarray(errors[..., s, :]), jnp.asarray(single[s]), higher_is_better)
        for s in range(len(single))
    ]
    return np.stack(of_seeds, axis=-1).astype(np.float64)


def ranks(errors: Float[np.ndarray, "methods seeds tasks"]) -> Float[np.ndarray, "methods"]:
    """Each method's mean rank: in every task of every seed the method with the least error has rank 1.

    Args:
        errors: of the multi-task networks; NaN is the worst.

    Returns:
        One rank for each method.

    Example:
        >>> import numpy as np
        >>> ranks(np.array([[[1.0, 2.0]], [[3.0, 1.0]], [[5.0, 5.0]]])).tolist()
        [1.5, 1.5, 3.0]
    """
    every = np.nan_to_num(errors.reshape(len(errors), -1), nan=np.inf)
    return np.asarray(mean_rank(jnp.asarray(every), jnp.zeros(every.shape[1], bool)))


def interval_text(values: Float[np.ndarray, "seeds"], digits: int = 1) -> str:
    """The mean and its 95 % interval, as tables show them.

    Args:
        values: one for each seed.
        digits: after the point.

    Returns:
        ``mean (low to high)``, or for how many seeds there is no number.

    Example:
        >>> import numpy as np
        >>> interval_text(np.array([1.0, 2.0, 3.0]))
        '2.0 (-0.5 to 4.5)'
        >>> interval_text(np.array([1.0, np.nan, 3.0]))
        'not finite for 1 of 3 seeds'
    """
    if bad := np.sum(~np.isfinite(values)):
        return f"not finite for {bad} of {len(values)} seeds"
    estimate, low, high, _ = mean_interval(values)
    return f"{estimate:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def figure_limit(values: Float[np.ndarray, "..."]) -> float:
    """Where an axis may end so that a few values far beyond the others do not squeeze them.

    Args:
        values: to be drawn; NaN are passed over.

    Returns:
        The greatest value, or Tukey's outer fence if that is less: the third quartile and three times the
        distance of the quartiles.

    Example:
        >>> import numpy as np
        >>> figure_limit(np.array([1.0, 2.0, 3.0, 4.0])), figure_limit(np.array([1.0, 2.0, 3.0, 4.0, 99.0]))
        (4.0, 10.0)
    """
    low, high = np.nanquantile(values, (0.25, 0.75))
    return float(min(np.nanmax(values), high + 3 * (high - low)))
