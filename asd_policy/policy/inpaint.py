"""Chunks that go on from actions that are committed: inpainting in the chain.

In the chain of a chunk whose first actions are known, what the network predicts of them, x̂0, is
replaced by what they are (clipped as all x̂0 are, beyond the range of the actions that were trained
on). That is a chain as any other, with another denoiser, at whose last step they come out: DDPM and
ASD draw from one and the same distribution, and so on for all samplers. It is another distribution
than that of chunks without commitments, and not exactly their conditional distribution given those
actions (which would need a correction of the whole chain); it is what is known as inpainting
(Janner et al., 2022, arXiv 2205.09991).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asd_policy.ambient import as_asked
from asd_policy.denoiser import Around, PreparedNetwork
from asd_policy.schedule import Schedule


class Inpainted(Around):
    """A prepared network that says of the known actions what they are.

    A condition is (B, C + 2 D): the network's, the known values (normalized), and 1 where they are
    known.

    Args:
        network: of chunks. schedule: the chain that is run. shape: (Tp, action_dim), D numbers.
    """

    def __init__(
        self, network: PreparedNetwork, schedule: Schedule, shape: tuple[int, ...], device: object
    ) -> None:
        self.network, self.shape = network, tuple(shape)
        self.numbers = int(torch.Size(shape).numel())
        signal, noise = schedule.signal, schedule.noise
        # The prediction that the denoiser turns into x̂0: p·x̂0 + q·x.
        p, q = {
            "epsilon": (-signal / noise, 1 / noise),
            "sample": (torch.ones_like(signal), torch.zeros_like(signal)),
            "v_prediction": (-1 / noise, signal / noise),
        }[schedule.config.prediction_type]
        self._p, self._q = (table.float().to(torch.device(str(device))) for table in (p, q))

    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        """As of a prepared network."""
        assert cond is not None
        own, known = cond.split([cond.shape[1] - 2 * self.numbers, 2 * self.numbers], 1)
        made = self.network.condition(own if own.shape[1] else None, batch)
        return torch.cat([made.expand(len(known), -1), known.to(made)], 1)

    def evaluate(self, x: Tensor, steps: Tensor, chains: Tensor, condition: Tensor) -> Tensor:
        """As of a prepared network."""
        own = condition.shape[1] - 2 * self.numbers
        said = self.network.evaluate(x, steps, chains, condition[:, :own].contiguous())
        rows = condition[:, own:][chains] if len(condition) > 1 else condition[:, own:]
        known, which = (part.view(-1, *self.shape) for part in rows.split(self.numbers, 1))
        p, q = (table[steps].view(-1, *[1] * len(self.shape)) for table in (self._p, self._q))
        return torch.where(which > 0, p * known.to(x) + q * x, said.to(x))


class AsItIs(Around):
    """Any network, ``network(x, timesteps, cond)``, called as a prepared one is.

    Args:
        network: on its device. timesteps: (K,) of the chain, there too.
    """

    def __init__(self, network: Any, timesteps: Tensor) -> None:
        self.network, self.timesteps = network, timesteps

    def condition(self, cond: Tensor | None, batch: int) -> Tensor:
        """As of a prepared network."""
        if cond is None:
            return torch.zeros(batch, 0, device=self.timesteps.device)
        return cond

    def evaluate(self, x: Tensor, steps: Tensor, chains: Tensor, condition: Tensor) -> Tensor:
        """As of a prepared network."""
        rows = condition[chains] if len(condition) > 1 else condition.expand(len(x), -1)
        cond = rows if rows.shape[1] else None
        with as_asked():  # a network may write into its input: it is not the chain's own
            predicted: Tensor = self.network(x.clone(), self.timesteps[steps], cond)
        return predicted
