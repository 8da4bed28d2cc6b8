"""A diffusion policy in a control loop: observations in, one action out, a chunk at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asd_policy.device import usable_device
from asd_policy.errors import CheckpointError, check_kind
from asd_policy.policy.checkpoint import Checkpoint, difference_table, load_checkpoint
from asd_policy.policy.sampled import SampledPolicy
from asd_policy.policy.source import CheckpointSource
from asd_policy.samplers.config import SamplerConfig
from asd_policy.samplers.result import Stats
from asd_policy.samplers.table import Plan


class DiffusionPolicy(SampledPolicy):
    """Receding-horizon control with a diffusion model of action chunks (Chi et al., 2023).

    To observations condition a chunk of Tp actions, of which Ta are executed, from the one of the
    current time step on. The loop is :class:`RecedingHorizon`'s.

    Args:
        checkpoint: a policy, whose network is moved to the device and otherwise left as it is: it
            may be trained on, and the next chunk is drawn with the weights of then. (Make another
            policy where single numbers of a weight were changed through ``.data`` or NumPy.)
        sampler: how chunks are drawn. device: where.
        engine: what draws them, one of ``asd_policy.engine.ENGINES``.
        precision: of the network: "fp32", "tf32" (on CUDA) or "bf16".
        compile: run the network through ``torch.compile``, which takes its time at first.
        threads: CPU threads that chunks are drawn with; None chooses by the network's size: one
            for those that a second thread makes hardly faster, torch's own number for large ones.

    A copy (``copy.deepcopy``, ``pickle``) is in the middle of the same episodes, will draw the same
    numbers, and has a network, an engine and a calibration of its own; ``on_draw`` stays behind.

    With ``window="auto"`` the network is timed when the first policy of its kind is made on a
    machine, and what was found is kept in the user's cache folder. Nothing is timed later on: the
    window depends on that, and on the acceptance stored with the checkpoint.

    Raises:
        ValueError: a sampler that this policy's chain does not allow, or an unknown option.
    """

    source: CheckpointSource

    def __init__(
        self,
        checkpoint: Checkpoint,
        sampler: SamplerConfig | None = None,
        device: str | torch.device = "cpu",
        engine: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
        threads: int | None = None,
    ) -> None:
        wanted = "a Checkpoint, as load_checkpoint() reads it (DiffusionPolicy.load takes a name)"
        check_kind("checkpoint", checkpoint, Checkpoint, wanted)
        self.sampler = SamplerConfig() if sampler is None else sampler
        check_kind("sampler", self.sampler, SamplerConfig, "a SamplerConfig, or None")
        self.config, self.card = checkpoint.config, checkpoint.card
        self.device = usable_device(device)
        place = self.device, engine, precision, compile, threads
        super().__init__(CheckpointSource(checkpoint, self.sampler, *place))
        self.network = self.source.network
        self.reset()

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        device: str | torch.device = "cpu",
        sampler: str | SamplerConfig = "asd",
        engine: str = "auto",
        precision: str = "fp32",
        compile: bool = False,
        threads: int | None = None,
        **options: Any,
    ) -> DiffusionPolicy:
        """Load a checkpoint.

        Args:
            folder: with ``model.safetensors`` and ``card.json``; or the name of a policy that
                ships with this package ("lift", "can", "square", "tool_hang", "transport").
            device: "cpu", "cuda", …
            engine, precision, compile, threads: as for the class.
            sampler: a name with ``options`` of ``SamplerConfig``, or a ``SamplerConfig``. All
                names of the command line are known ("asd-paper", "ddim-16" …).

        Raises:
            CheckpointError: a folder that is missing, damaged or no checkpoint.
            ValueError: an unknown sampler or option value.
        """
        config = SamplerConfig.named(sampler, asked_of=cls.load, **options)
        return cls(load_checkpoint(folder), config, device, engine, precision, compile, threads)

    @property
    def observation_keys(self) -> dict[str, int]:
        """Observation key → dimension, in order."""
        return dict(self.config.observation_keys)

    @property
    def action_dim(self) -> int:
        """Numbers in an action."""
        return self.config.action_dim

    @property
    def parameters(self) -> int:
        """Numbers in the network."""
        return sum(p.numel() for p in self.network.parameters())

    def check_observation_space(self, keys: Mapping[str, int]) -> None:
        """Raise a CheckpointError with one table unless ``keys`` (key → dim) are the policy's."""
        expected = {k: (dim,) for k, dim in self.config.observation_keys.items()}
        table = difference_table(expected, {k: (dim,) for k, dim in keys.items()})
        if table:
            raise CheckpointError(f"the policy was made for other observations:\n{table}")

    def sample(
        self,
        histories: np.ndarray,
        generators: Sequence[torch.Generator],
        plan: Plan | None = None,
    ) -> tuple[np.ndarray, Stats]:
        """:meth:`CheckpointSource.sample`: chunks for given histories, without environments."""
        return self.source.sample(histories, generators, plan)
