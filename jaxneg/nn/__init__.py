"""The models that the experiments need, as pure functions over nested dicts of arrays."""

from jaxneg.nn.batch_norm import BatchNorm, NormalisedModel, mean_statistics
from jaxneg.nn.bridge import Model, bridge, bridge_normalised
from jaxneg.nn.conditioning import timestep_embedding
from jaxneg.nn.contraction import contract
from jaxneg.nn.convolution import convolve
from jaxneg.nn.cross_encoder import (
    BERT_BASE,
    CrossEncoderConfig,
    cross_encoder,
    cross_encoder_from_torch,
)
from jaxneg.nn.deeplab import deeplab_head
from jaxneg.nn.denoising_mlp import denoising_mlp
from jaxneg.nn.dit import DIT_B_2, DIT_L_2, DIT_RULES, DIT_S_2, DIT_XL_2, DiTConfig, dit
from jaxneg.nn.domain_network import feature_cnn, feature_mlp, log_probability_head
from jaxneg.nn.encoder_decoder import (
    ENCODER_DECODER_RULES,
    T5_BASE,
    T5_SMALL,
    T5_V1_1_BASE,
    T5_V1_1_SMALL,
    DecoderCache,
    Encoder,
    EncoderDecoder,
    EncoderDecoderConfig,
    encoder_decoder,
    encoder_decoder_from_torch,
)
from jaxneg.nn.gin import gin, gin_encoder
from jaxneg.nn.iresnet import iresnet
from jaxneg.nn.mlp import MLP_RULES, mlp
from jaxneg.nn.mlp_mixer import mlp_mixer
from jaxneg.nn.multi_head_projector import multi_head_predictor, multi_head_projector
from jaxneg.nn.pair_predictor import node_statistics, pair_predictor
from jaxneg.nn.rationale_judge import RationaleJudge, rationale_judge
from jaxneg.nn.resnet import resnet, resnet_cifar, resnet_from_torch
from jaxneg.nn.transformer import (
    LLAMA_3_2_1B,
    TRANSFORMER_RULES,
    Cache,
    Probe,
    RotaryScaling,
    TransformerConfig,
    init_cache,
    transformer,
    transformer_from_torch,
)
from jaxneg.nn.unet import UNetConfig, unet

__all__ = [
    "BERT_BASE",
    "DIT_B_2",
    "DIT_L_2",
    "DIT_RULES",
    "DIT_S_2",
    "DIT_XL_2",
    "ENCODER_DECODER_RULES",
    "LLAMA_3_2_1B",
    "MLP_RULES",
    "T5_BASE",
    "T5_SMALL",
    "T5_V1_1_BASE",
    "T5_V1_1_SMALL",
    "TRANSFORMER_RULES",
    "BatchNorm",
    "Cache",
    "CrossEncoderConfig",
    "DecoderCache",
    "DiTConfig",
    "Encoder",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "Model",
    "NormalisedModel",
    "Probe",
    "RationaleJudge",
    "RotaryScaling",
    "TransformerConfig",
    "UNetConfig",
    "bridge",
    "bridge_normalised",
    "contract",
    "convolve",
    "cross_encoder",
    "cross_encoder_from_torch",
    "deeplab_head",
    "denoising_mlp",
    "dit",
    "encoder_decoder",
    "encoder_decoder_from_torch",
    "feature_cnn",
    "feature_mlp",
    "gin",
    "gin_encoder",
    "init_cache",
    "iresnet",
    "log_probability_head",
    "mean_statistics",
    "mlp",
    "mlp_mixer",
    "multi_head_predictor",
    "multi_head_projector",
    "node_statistics",
    "pair_predictor",
    "rationale_judge",
    "resnet",
    "resnet_cifar",
    "resnet_from_torch",
    "timestep_embedding",
    "transformer",
    "transformer_from_torch",
    "unet",
]
