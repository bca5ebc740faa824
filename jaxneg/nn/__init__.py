"""The models that the experiments need, as pure functions over nested dicts of arrays."""

from jaxneg.nn.bridge import Model, bridge
from jaxneg.nn.contraction import contract
from jaxneg.nn.mlp import MLP_RULES, mlp
from jaxneg.nn.transformer import LLAMA_3_2_1B, TRANSFORMER_RULES, TransformerConfig, transformer

__all__ = [
    "LLAMA_3_2_1B",
    "MLP_RULES",
    "TRANSFORMER_RULES",
    "Model",
    "TransformerConfig",
    "bridge",
    "contract",
    "mlp",
    "transformer",
]
