"""The models that the experiments need, as pure functions over nested dicts of arrays."""

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel, mean_statistics
from jaxneg.nn.bridge import Model, bridge, bridge_normalised
from jaxneg.nn.contraction import contract, convolve
from jaxneg.nn.deeplab import deeplab_head
from jaxneg.nn.mlp import MLP_RULES, mlp
from jaxneg.nn.resnet import resnet, resnet_from_torch
from jaxneg.nn.transformer import LLAMA_3_2_1B, TRANSFORMER_RULES, TransformerConfig, transformer

__all__ = [
    "LLAMA_3_2_1B",
    "MLP_RULES",
    "TRANSFORMER_RULES",
    "BatchNorm",
    "Model",
    "NormalisedModel",
    "TransformerConfig",
    "bridge",
    "bridge_normalised",
    "contract",
    "convolve",
    "deeplab_head",
    "mean_statistics",
    "mlp",
    "resnet",
    "resnet_from_torch",
    "transformer",
]
