"""What a diffusion network predicts: the noise, the clean data, or the velocity, and how they convert.

With ``x = alpha x_0 + sigma eps`` and ``alpha^2 + sigma^2 = 1``: ``v = alpha eps - sigma x_0``.

Papers: epsilon, arXiv:2006.11239, Section 3.2; v, arXiv:2202.00512, Appendix D.
"""

from typing import Literal, get_args

from jaxtyping import Array, Float

from jaxneg.diffusion.arguments import at_least_float32, one_of, over_trailing, same_shape

Prediction = Literal["epsilon", "x0", "v"]


def add_noise(
    x0: Float[Array, "batch ..."],
    noise: Float[Array, "batch ..."],
    alpha: float | Float[Array, " batch"],
    sigma: float | Float[Array, " batch"],
) -> Float[Array, "batch ..."]:
    """A draw of ``q(x_t | x_0)``.

    ``x_t = alpha x_0 + sigma eps``

    Args:
        x0: clean data.
        noise: eps, standard normal, of the same shape.
        alpha: the signal's scale, one number or one for each example.
        sigma: the noise's scale, likewise.

    Returns:
        The noisy data, in float32 or wider.

    Raises:
        TypeError: data that is not floating.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2006.11239, equation 4.

    Example:
        >>> import jax.numpy as jnp
        >>> add_noise(jnp.ones((1, 2)), jnp.ones((1, 2)), 0.5, jnp.array([0.25])).tolist()
        [[0.75, 0.75]]
    """
    x0, noise = at_least_float32("x0", x0), at_least_float32("noise", noise)
    same_shape("noise", noise, "x0", x0)
    return over_trailing("alpha", alpha, x0) * x0 + over_trailing("sigma", sigma, x0) * noise


def predict_x0(
    output: Float[Array, "batch ..."],
    x: Float[Array, "batch ..."],
    alpha: float | Float[Array, " batch"],
    sigma: float | Float[Array, " batch"],
    prediction: Prediction = "epsilon",
) -> Float[Array, "batch ..."]:
    """The clean data that a network's output stands for.

    ``epsilon: (x - sigma output) / alpha``, ``x0: output``, ``v: alpha x - sigma output``

    Args:
        output: of the network.
        x: the noisy data it saw.
        alpha: the signal's scale, one number or one for each example.
        sigma: the noise's scale, likewise.
        prediction: what the network predicts, "epsilon", "x0" or "v".

    Returns:
        The estimate of x_0, in float32 or wider.

    Raises:
        TypeError: data that is not floating.
        ValueError: an unknown prediction, or shapes that do not fit.

    Source:
        arXiv:2006.11239, equation 15 (Tweedie's formula); arXiv:2202.00512, Appendix D.

    Example:
        >>> import jax.numpy as jnp
        >>> predict_x0(jnp.ones((1, 2)), jnp.ones((1, 2)), 0.5, 0.75).tolist()
        [[0.5, 0.5]]
    """
    output, x, alpha_x, sigma_x = _checked(output, x, alpha, sigma, prediction)
    if prediction == "x0":
        return output
    if prediction == "v":
        return alpha_x * x - sigma_x * output
    return (x - sigma_x * output) / alpha_x


def predict_noise(
    output: Float[Array, "batch ..."],
    x: Float[Array, "batch ..."],
    alpha: float | Float[Array, " batch"],
    sigma: float | Float[Array, " batch"],
    prediction: Prediction = "epsilon",
) -> Float[Array, "batch ..."]:
    """The noise that a network's output stands for.

    ``epsilon: output``, ``x0: (x - alpha output) / sigma``, ``v: sigma x + alpha output``

    Args:
        output: of the network.
        x: the noisy data it saw.
        alpha: the signal's scale, one number or one for each example.
        sigma: the noise's scale, likewise.
        prediction: what the network predicts, "epsilon", "x0" or "v".

    Returns:
        The estimate of eps, in float32 or wider.

    Raises:
        TypeError: data that is not floating.
        ValueError: an unknown prediction, or shapes that do not fit.

    Source:
        arXiv:2202.00512, Appendix D.

    Example:
        >>> import jax.numpy as jnp
        >>> predict_noise(jnp.ones((1, 2)), jnp.ones((1, 2)), 0.75, 0.5, "x0").tolist()
        [[0.5, 0.5]]
    """
    output, x, alpha_x, sigma_x = _checked(output, x, alpha, sigma, prediction)
    if prediction == "epsilon":
        return output
    if prediction == "v":
        return sigma_x * x + alpha_x * output
    return (x - alpha_x * output) / sigma_x


def predict_v(
    output: Float[Array, "batch ..."],
    x: Float[Array, "batch ..."],
    alpha: float | Float[Array, " batch"],
    sigma: float | Float[Array, " batch"],
    prediction: Prediction = "epsilon",
) -> Float[Array, "batch ..."]:
    """The velocity that a network's output stands for.

    ``epsilon: (output - sigma x) / alpha``, ``x0: (alpha x - output) / sigma``, ``v: output``

    Args:
        output: of the network.
        x: the noisy data it saw.
        alpha: the signal's scale, one number or one for each example.
        sigma: the noise's scale, likewise.
        prediction: what the network predicts, "epsilon", "x0" or "v".

    Returns:
        The estimate of v, in float32 or wider.

    Raises:
        TypeError: data that is not floating.
        ValueError: an unknown prediction, or shapes that do not fit.

    Source:
        arXiv:2202.00512, Appendix D.

    Example:
        >>> import jax.numpy as jnp
        >>> predict_v(jnp.ones((1, 2)), jnp.ones((1, 2)), 0.5, 0.75).tolist()
        [[0.5, 0.5]]
    """
    output, x, alpha_x, sigma_x = _checked(output, x, alpha, sigma, prediction)
    if prediction == "v":
        return output
    if prediction == "epsilon":
        return (output - sigma_x * x) / alpha_x
    return (alpha_x * x - output) / sigma_x


def _checked(output, x, alpha, sigma, prediction: str) -> tuple[Array, Array, Array, Array]:
    one_of("prediction", prediction, get_args(Prediction))
    output, x = at_least_float32("output", output), at_least_float32("x", x)
    same_shape("output", output, "x", x)
    return output, x, over_trailing("alpha", alpha, x), over_trailing("sigma", sigma, x)
