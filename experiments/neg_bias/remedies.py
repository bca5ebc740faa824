"""Remedies that only move the decision: the logit of no is lowered by one number for all questions."""

from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.neg_bias.evaluation import next_word
from experiments.neg_bias.world import ANS, NO, PAD, UNTOLD, YES, YN, World
from jaxneg.nn.transformer import TransformerConfig


def shifted_by_empty_question(
    params: Any, logits: Float[np.ndarray, "facts 2 2"], model: TransformerConfig
) -> Float[np.ndarray, "facts 2 2"]:
    """The logits less what the model says to a question without content: pads for its words.

    Args:
        params: of the model.
        logits: of yes and no.
        model: its shapes.

    Returns:
        Logits of the same shape.
    """
    empty = np.array([[YN, YES, NO, PAD, PAD, PAD, ANS]])
    found = np.asarray(next_word(params, empty, np.array([empty.shape[1] - 1]), model=model))[0]
    return logits - [0, found[NO] - found[YES]]


def shifted_by_dev(logits: Float[np.ndarray, "facts 2 2"], world: World) -> Float[np.ndarray, "facts 2 2"]:
    """The logits with the threshold at which half of the questions about untold facts get a No.

    Args:
        logits: of yes and no; both twins of every fact, so that half a No is right.
        world: the facts.

    Returns:
        Logits of the same shape.
    """
    dev = logits[world.group == UNTOLD]
    return logits - [0, np.median(dev[..., 1] - dev[..., 0])]
