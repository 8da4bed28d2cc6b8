"""Noise-prediction networks with the state dictionaries of the published ones."""

from asd_policy.networks.inference import InferenceUnet1D
from asd_policy.networks.others import OthersUnet1D
from asd_policy.networks.transformer import TransformerForDiffusion, TransformerSizes
from asd_policy.networks.unet1d import ConditionalUnet1D

__all__ = [
    "ConditionalUnet1D",
    "InferenceUnet1D",
    "OthersUnet1D",
    "TransformerForDiffusion",
    "TransformerSizes",
]
