"""A judge of rationales: how good is what is said of a question?

The discriminator of Wang et al., arXiv:2405.13014, Section 3.2: an encoder over question and rationale, the
maximum over their tokens, two linear layers, a sigmoid. The paper's encoder is that of T5-base; *our
reading* is that the first linear layer has the encoder's width and a ReLU.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.contraction import contract_rows
from jaxneg.nn.encoder_decoder import Encoder, EncoderDecoderConfig


class RationaleJudge(Encoder):
    """The module behind :func:`rationale_judge`.

    Its parameters ``embed`` and ``encoder`` are those of :func:`jaxneg.nn.encoder_decoder`, so that a
    pretrained encoder can be put in their place.
    """

    def __init__(self, config: EncoderDecoderConfig, separator: int, rngs: nnx.Rngs):
        super().__init__(config, rngs)
        self.separator = separator
        self.hidden = _linear(config.width, config.width, rngs)
        self.score = _linear(config.width, 1, rngs)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        question: Int[Array, "batch source"],
        question_mask: Bool[Array, "batch source"],
        rationales: Int[Array, "batch sets tokens"],
        rationale_mask: Bool[Array, "batch sets tokens"],
    ) -> Float[Array, "batch sets"]:
        """The score of each rationale, 0 to 1."""
        batch, sets, _ = rationales.shape
        rows = jax.vmap(jax.vmap(joined, in_axes=(None, None, 0, 0, None)), in_axes=(0, 0, 0, 0, None))
        tokens, mask = rows(question, question_mask != 0, rationales, rationale_mask != 0, self.separator)
        tokens, mask = (array.reshape(batch * sets, -1) for array in (tokens, mask))
        states = super().__call__(tokens, mask)
        lowest = jnp.finfo(states.dtype).min
        pooled = jnp.where(mask[..., None], states, lowest).max(1)
        logits = self.score(jax.nn.relu(self.hidden(pooled.astype(jnp.float32))))
        return jax.nn.sigmoid(logits[:, 0]).reshape(batch, sets)


def rationale_judge(config: EncoderDecoderConfig, separator: int) -> Model:
    """A network that scores rationales.

    ``s = sigmoid(W_2 relu(W_1 max_t encoder(question [sep] rationale)_t))``

    Args:
      config: Sizes and choices of the encoder; those of the decoder have no effect.
      separator: The token between question and rationale.

    Returns:
      ``init(key) -> params``; ``apply(params, question [B, S], mask, rationales [B, n, T], mask) -> scores
      [B, n]``. The tokens of both come first in their rows, padding after them; a question without its
      padding has the same scores, but for rounding.

    Raises:
      ValueError: From ``apply``, for more tokens than learned positions.

    Source:
      arXiv:2405.13014, Section 3.2 and equation 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxneg.nn import EncoderDecoderConfig, rationale_judge
      >>> model = rationale_judge(EncoderDecoderConfig(vocab=11, width=8, heads=2), separator=10)
      >>> x, r = jnp.ones((2, 5), int), jnp.ones((2, 3, 4), int)
      >>> model.apply(model.init(jax.random.key(0)), x, x, r, r).shape
      (2, 3)
    """
    return bridge(lambda rngs: RationaleJudge(config, separator, rngs))


def joined(
    first: Int[Array, " source"],
    first_mask: Bool[Array, " source"],
    second: Int[Array, " tokens"],
    second_mask: Bool[Array, " tokens"],
    separator: int,
) -> tuple[Int[Array, " both"], Bool[Array, " both"]]:
    """Two token sequences in one row, without the padding of the first between them.

    Args:
      first: Tokens, then padding.
      first_mask: True where there is a token.
      second: Likewise.
      second_mask: Likewise.
      separator: The token between them.

    Returns:
      ``len(first) + 1 + len(second)`` tokens, padding last, and their mask.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn.rationale_judge import joined
      >>> some = jnp.array([True, False])
      >>> tokens, mask = joined(jnp.array([5, 0]), some, jnp.array([7, 0]), some, 9)
      >>> tokens[mask].tolist()
      [5, 9, 7]
    """
    place = jnp.arange(len(first) + 1 + len(second))
    count, others = first_mask.sum(), second_mask.sum()
    of_second = place - count - 1
    tokens = jnp.where(
        place < count,
        first[jnp.minimum(place, len(first) - 1)],
        jnp.where(place == count, separator, second[jnp.clip(of_second, 0, len(second) - 1)]),
    )
    return tokens, of_second < others


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, dot_general=contract_rows, rngs=rngs)
