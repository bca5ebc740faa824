"""The measure of the trained parts: how much worse than single-task networks a multi-task network is."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.claims import mean_interval
from jaxneg.mtl import delta_m


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


def interval_text(values: Float[np.ndarray, "seeds"]) -> str:
    """The mean and its 95 % interval, as tables show them.

    Args:
        values: one for each seed.

    Returns:
        ``mean (low to high)``.

    Example:
        >>> import numpy as np
        >>> interval_text(np.array([1.0, 2.0, 3.0]))
        '2.0 (-0.5 to 4.5)'
    """
    estimate, low, high, _ = mean_interval(values)
    return f"{estimate:.1f} ({low:.1f} to {high:.1f})"
