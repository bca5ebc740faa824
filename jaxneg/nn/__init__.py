"""The models that the experiments need, as pure functions over nested dicts of arrays."""

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel, mean_statistics
from jaxneg.nn.bridge import Model, bridge, bridge_normalised
from jaxneg.nn.conditioning import timestep_embedding
from jaxneg.nn.contraction import contract, convolve
from jaxneg.nn.deeplab import deeplab_head
from jaxneg.nn.denoising_mlp import denoising_mlp
from jaxneg.nn.dit import DIT_B_2, DIT_L_2, DIT_RULES, DIT_S_2, DIT_XL_2, DiTConfig, dit
from jaxneg.nn.mlp import MLP_RULES, mlp
from jaxneg.nn.resnet import resnet, resnet_from_torch
from jaxneg.nn.transformer import LLAMA_3_2_1B, TRANSFORMER_RULES, TransformerConfig, transformer
from jaxneg.nn.unet import UNetConfig, unet

__all__ = [
    "DIT_B_2",
    "DIT_L_2",
    "DIT_RULES",
    "DIT_S_2",
    "DIT_XL_2",
    "LLAMA_3_2_1B",
    "MLP_RULES",
    "TRANSFORMER_RULES",
    "BatchNorm",
    "DiTConfig",
    "Model",
    "NormalisedModel",
    "TransformerConfig",
    "UNetConfig",
    "bridge",
    "bridge_normalised",
    "contract",
    "convolve",
    "deeplab_head",
    "denoising_mlp",
    "dit",
    "mean_statistics",
    "mlp",
    "resnet",
    "resnet_from_torch",
    "timestep_embedding",
    "transformer",
    "unet",
]
