"""The algorithm "diffusion_policy" for robomimic 0.3, which has none.

Configuration keys, parameter names and checkpoint layout are those of ``DiffusionPolicyUNet`` in
robomimic 0.5. One thing differs: ``algo.unet`` says how large the network is, where that release
builds the default sizes whatever it says.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from functools import cached_property
from typing import Any

import robomimic.utils.obs_utils as obs_utils
import robomimic.utils.tensor_utils as tensor_utils
import robomimic.utils.torch_utils as torch_utils
import torch
from robomimic.algo import PolicyAlgo, register_algo_factory_func
from robomimic.models.obs_nets import ObservationGroupEncoder
from torch import Tensor, nn

from asd_policy.errors import CheckpointError, DatasetError, InputError
from asd_policy.integrations.robomimic.actions import count_sequences, fitted_statistics
from asd_policy.integrations.robomimic.source import chunk_sampler, encode, rollout_networks
from asd_policy.integrations.robomimic_format import (
    ALGO_NAME,
    GROUPS,
    NETWORK_PREFIX,
    architecture,
    ddim_steps,
    groups_in,
    groups_of,
    trained_schedule,
)
from asd_policy.networks.unet1d import ConditionalUnet1D
from asd_policy.policy.checkpoint import difference_table
from asd_policy.sampler import Sampler
from asd_policy.samplers.config import SamplerConfig
from asd_policy.training.ema import EMA

CHANNELS_PER_GROUP = 16


@register_algo_factory_func(ALGO_NAME)
def algorithm_class(algo_config: Any) -> tuple[type[PolicyAlgo], dict[str, Any]]:
    """The class that a configuration asks for, and further arguments of it."""
    if not algo_config.unet.enabled:
        raise InputError("diffusion_policy: only the U-Net exists; expected algo.unet.enabled true")
    return DiffusionPolicyUNet, {}


class AveragedNetworks(EMA):
    """Averages of all networks, under the name by which robomimic's code asks for them."""

    @property
    def averaged_model(self) -> nn.Module:
        return self.network


class DiffusionPolicyUNet(PolicyAlgo):
    """Noise prediction by a U-Net, conditioned on To encoded observations (Chi et al., 2023).

    Sampling is sequential, as in robomimic; ``accelerate`` replaces it.
    """

    def _create_networks(self) -> None:
        encoder = ObservationGroupEncoder(
            observation_group_shapes=OrderedDict(obs=OrderedDict(self.obs_shapes)),
            encoder_kwargs=obs_utils.obs_encoder_kwargs_from_config(self.obs_config.encoder),
        )
        group_normalized(encoder)
        self.condition_dim = encoder.output_shape()[0] * int(self._horizon("observation"))
        unet = self.algo_config.unet
        network = ConditionalUnet1D(
            self.ac_dim,
            self.condition_dim,
            int(unet.diffusion_step_embed_dim),
            tuple(unet.down_dims),
            int(unet.kernel_size),
            int(unet.n_groups),
        )
        self._set_networks(encoder, network)
        self.schedule = trained_schedule(self.algo_config)
        self.updates = 0
        self.action_normalization_stats: Any = None
        self._knows_statistics = False
        self._queue: deque[Tensor] = deque()
        self._sampler: Sampler | None = None

    def _set_networks(self, encoder: nn.Module, network: nn.Module) -> None:
        parts = nn.ModuleDict({"obs_encoder": encoder, "noise_pred_net": network})
        self.nets: Any = nn.ModuleDict({"policy": parts}).float().to(self.device)
        ema = self.algo_config.ema
        self.ema = AveragedNetworks(self.nets, float(ema.power)) if ema.enabled else None

    def _horizon(self, name: str) -> int:
        return int(self.algo_config.horizon[f"{name}_horizon"])

    def _create_optimizers(self) -> None:
        """As 0.3 does it, and the cosine with warm-up that 0.5 has (a step for each batch)."""
        rate = self.optim_params["policy"]["learning_rate"]
        kind = rate["scheduler_type"]
        if kind not in ("cosine", "constant", "linear", "multistep"):
            raise InputError(
                "algo.optim_params.policy.learning_rate.scheduler_type: expected cosine, constant, "
                f"linear or multistep, got {kind!r}"
            )
        super()._create_optimizers()
        if kind == "cosine":
            self.lr_schedulers["policy"] = torch.optim.lr_scheduler.LambdaLR(
                self.optimizers["policy"], self._cosine
            )

    def _cosine(self, step: int) -> float:
        """Factor of the learning rate at a step: linear warm-up, then ``num_cycles`` cosines."""
        rate = self.optim_params["policy"]["learning_rate"]
        warm = int(rate["warmup_steps"])
        if step < warm:
            return step / warm
        if step == warm:  # the first one: a policy that is only loaded has no data to count
            return 1.0
        total = self.global_config.train.num_epochs * self._epoch_batches
        progress = (step - warm) / max(1, total - warm)
        return max(0.0, 0.5 * (1 + math.cos(2 * math.pi * float(rate["num_cycles"]) * progress)))

    @cached_property
    def _epoch_batches(self) -> int:
        """Batches of an epoch: as many as are set, or else those of the whole dataset. (There 0.5
        counts sequences, and so hardly comes down from the highest rate.)"""
        train = self.global_config.train
        steps = self.global_config.experiment.epoch_every_n_steps
        return int(steps or max(1, count_sequences(self.global_config) // train.batch_size))

    def process_batch_for_training(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The To first observations and Tp first actions of a batch's sequences.

        Actions are normalized as ``train.action_config`` says; observations are later, by
        robomimic.

        Raises:
            DatasetError: actions outside [−1, 1], or sequences of another length.
        """
        actions = self._normalized(batch["actions"][:, : self._horizon("prediction")])
        expected = self._horizon("prediction"), self.ac_dim
        if tuple(actions.shape[1:]) != expected:
            raise DatasetError(
                f"expected sequences of {expected} actions, got {tuple(actions.shape[1:])}: "
                "train.seq_length must be algo.horizon.prediction_horizon or more, and "
                "train.frame_stack algo.horizon.observation_horizon"
            )
        worst = float(actions.abs().max())
        if not worst <= 1:
            raise DatasetError(
                f"diffusion_policy needs actions in [−1, 1], found {worst:.9g}; "
                'train.action_config.actions.normalization "min_max" scales them'
            )
        time = self._horizon("observation")
        made = {
            "obs": {key: batch["obs"][key][:, :time] for key in self.obs_shapes},
            "goal_obs": None,
            "actions": actions,
        }
        return tensor_utils.to_device(tensor_utils.to_float(made), self.device)

    def _normalized(self, actions: Tensor) -> Tensor:
        if not self._knows_statistics:
            self.action_normalization_stats = fitted_statistics(self.global_config)
            self._knows_statistics = True
        if self.action_normalization_stats is None:
            return actions
        parts = self.action_normalization_stats["actions"]
        offset, scale = (actions.new_tensor(parts[name][0]) for name in ("offset", "scale"))
        return (actions - offset) / scale

    def train_on_batch(
        self, batch: dict[str, Any], epoch: int, validate: bool = False
    ) -> dict[str, Any]:
        """One step of denoising score matching; only the loss with ``validate``."""
        with torch_utils.maybe_no_grad(no_grad=validate):
            info = super().train_on_batch(batch, epoch, validate=validate)
            clean = batch["actions"]
            cond = encode(self.nets["policy"]["obs_encoder"], batch["obs"])
            noise = torch.randn_like(clean)
            steps = self.schedule.config.num_steps
            timesteps = torch.randint(steps, (len(clean),), device=clean.device)
            noisy = self.schedule.add_noise(clean, noise, timesteps)
            predicted = self.nets["policy"]["noise_pred_net"](noisy, timesteps, cond)
            target = self.schedule.training_target(clean, noise, timesteps)
            loss = (predicted - target).square().mean()
            info["losses"] = {"l2_loss": loss.detach()}
            if not validate:
                info["policy_grad_norms"] = torch_utils.backprop_for_loss(
                    net=self.nets,
                    optim=self.optimizers["policy"],
                    loss=loss,
                    max_grad_norm=self.global_config.train.get("max_grad_norm"),
                )
                self._after_update()
        return info

    def _after_update(self) -> None:
        self.updates += 1
        if self.ema is not None:
            self.ema.update(self.nets, self.updates)
        if self._steps_every_batch:
            self.lr_schedulers["policy"].step()

    @property
    def _steps_every_batch(self) -> bool:
        rate = self.optim_params["policy"]["learning_rate"]
        return self.lr_schedulers.get("policy") is not None and rate["scheduler_type"] == "cosine"

    def on_epoch_end(self, epoch: int) -> None:
        if not self._steps_every_batch:
            super().on_epoch_end(epoch)

    def log_info(self, info: dict[str, Any]) -> dict[str, Any]:
        log = super().log_info(info)
        log["Loss"] = info["losses"]["l2_loss"].item()
        if "policy_grad_norms" in info:
            log["Policy_Grad_Norms"] = info["policy_grad_norms"]
        return log

    def reset(self) -> None:
        """Start an episode, with the weights of now."""
        self._queue.clear()
        self._sampler = None

    def get_action(self, obs_dict: dict[str, Tensor], goal_dict: Any = None) -> Tensor:
        """Key → (1, To, \\*shape), or (1, \\*shape) if To is 1 → (1, action_dim).

        Raises:
            ValueError: a batch, whose environments would need queues of their own: see
                ``accelerate``.
        """
        if not self._queue:
            self._queue.extend(self._trajectory(obs_dict))
        return self._queue.popleft()[None]

    @torch.no_grad()
    def _trajectory(self, obs_dict: dict[str, Tensor]) -> Tensor:
        """(Ta, action_dim), sampled as the configuration says."""
        frames = {}
        for key, shape in self.obs_shapes.items():
            value = obs_dict[key]
            frames[key] = value[:, None] if value.ndim == len(shape) + 1 else value
        if len(next(iter(frames.values()))) != 1:
            raise InputError("get_action() is for one environment; accelerate() takes batches")
        nets, _ = rollout_networks(self)
        if self._sampler is None:
            steps = ddim_steps(self.algo_config)
            config = SamplerConfig("ddpm") if steps is None else SamplerConfig("ddim", steps=steps)
            self._sampler = chunk_sampler(self, config)
        seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        generator = torch.Generator(self.device).manual_seed(seed)
        noise = self._sampler.noise([generator])
        chunks, _ = self._sampler.draw(noise, encode(nets["obs_encoder"], frames))
        first = self._horizon("observation") - 1
        return chunks[0, first : first + self._horizon("action")].clone()

    def serialize(self) -> dict[str, Any]:
        """Weights, averages, optimizers and schedulers, in the layout of 0.5; and the number of
        groups, which 0.5 takes for 8."""
        schedulers = {
            name: None if value is None else value.state_dict()
            for name, value in self.lr_schedulers.items()
        }
        return {
            "nets": self.nets.state_dict(),
            "optimizers": {name: value.state_dict() for name, value in self.optimizers.items()},
            "lr_schedulers": schedulers,
            GROUPS: groups_in(self.nets["policy"]["noise_pred_net"]),
            "ema": None if self.ema is None else self.ema.network.state_dict(),
        }

    def deserialize(self, model_dict: dict[str, Any], load_optimizers: bool = False) -> None:
        """Load :meth:`serialize`'s, or 0.5's, whose networks have the default sizes.

        Raises:
            CheckpointError: weights that do not fit, in one table.
        """
        self._fit_network(model_dict)
        _load(self.nets, model_dict["nets"])
        if self.ema is not None:
            # Without averages, the weights themselves are the best estimate of them.
            _load(self.ema.network, model_dict.get("ema") or model_dict["nets"])
        if load_optimizers:
            for name, state in model_dict.get("optimizers", {}).items():
                self.optimizers[name].load_state_dict(state)
            for name, state in model_dict.get("lr_schedulers", {}).items():
                if state is not None:
                    self.lr_schedulers[name].load_state_dict(state)
        self.reset()

    def _fit_network(self, model: dict[str, Any]) -> None:
        """Rebuild the network where the weights are of another size than ``algo.unet`` says."""
        weights = model["nets"]
        start = len(NETWORK_PREFIX)
        own = {k[start:]: v for k, v in weights.items() if k.startswith(NETWORK_PREFIX)}
        network = self.nets["policy"]["noise_pred_net"]
        sizes = architecture(own, groups_of(model, self.algo_config, own))
        ends = sizes["input_dim"], sizes["global_cond_dim"]
        same = sizes == architecture(network.state_dict(), groups_in(network))
        if not same and ends == (self.ac_dim, self.condition_dim):
            self._set_networks(self.nets["policy"]["obs_encoder"], ConditionalUnet1D(**sizes))
            self._create_optimizers()


def _load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    table = difference_table(expected, {key: tuple(value.shape) for key, value in weights.items()})
    if table:
        raise CheckpointError(f"the checkpoint's weights do not fit its configuration:\n{table}")
    module.load_state_dict(weights)


def group_normalized(module: nn.Module) -> None:
    """Replace every BatchNorm2d by a GroupNorm of 16 channels a group, in place.

    Averaged weights do not go with running statistics of batches (Chi et al., 2023).
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            channels = child.num_features
            setattr(module, name, nn.GroupNorm(channels // CHANNELS_PER_GROUP, channels))
        else:
            group_normalized(child)
