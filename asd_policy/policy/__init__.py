"""Diffusion policies: normalization, horizons, checkpoints, control."""

from asd_policy.policy.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, update_card
from asd_policy.policy.config import PolicyConfig
from asd_policy.policy.control import Controller
from asd_policy.policy.draws import ChunkStats, Draw
from asd_policy.policy.horizon import Chunks, ChunkSource, RecedingHorizon
from asd_policy.policy.normalizer import Normalizer
from asd_policy.policy.policy import DiffusionPolicy
from asd_policy.samplers.config import SamplerConfig

__all__ = [
    "Checkpoint",
    "ChunkSource",
    "ChunkStats",
    "Chunks",
    "Controller",
    "DiffusionPolicy",
    "Draw",
    "Normalizer",
    "PolicyConfig",
    "RecedingHorizon",
    "SamplerConfig",
    "load_checkpoint",
    "save_checkpoint",
    "update_card",
]
