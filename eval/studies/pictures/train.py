"""Pixel DDPMs of some minutes' training on one thread, and networks that name their pictures.

Batches and noise depend on the seed and the step's number alone, so that a training that was
stopped ends as one that was not.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asd_policy.console import say
from asd_policy.errors import InputError
from asd_policy.eval.runs.store import check_same
from asd_policy.eval.studies.pictures.features import FEATURES, Classifier
from asd_policy.eval.studies.pictures.models import (
    OUT,
    Model,
    Name,
    Pictures,
    check_diffusers,
    model_called,
    parameters,
    pictures_of,
)
from asd_policy.files import claimed, replacing, writing
from asd_policy.progress import Stage
from asd_policy.threads import limited_to
from asd_policy.training.ema import EMA

KEEP_EVERY = 100  # steps
PASSES = 30  # of the network for features, over its pictures
STATE = "training.pt"


def train(
    name: Name, /, out: Path = OUT, steps: int | None = None, episodes: int = 10, seed: int = 0
) -> None:
    """Train a DDPM of 1000 steps and a network that tells its pictures apart, or go on with it.

    <out>/<name>/pipeline is a DDPMPipeline of diffusers' afterwards.

    Args:
        name: digits (scikit-learn's, 8x8) or scenes (views of robots, 32x32x3, rendered first).
        out: Folder of the study.
        steps: Steps of the optimizer; left out, the model's own.
        episodes: Of scenes, how many of each task are rendered.
        seed: Seed of weights, batches and noise.
    """
    model = model_called(name)
    model = replace(model, steps=model.steps if steps is None else steps)
    if model.steps < 1 or episodes < 1:
        raise InputError(f"--steps and --episodes are 1 or more; got {model.steps}, {episodes}")
    check_diffusers()
    folder = out / name
    with claimed(folder), limited_to(1):
        if (folder / "pipeline").is_dir():
            say(f"{folder / 'pipeline'} is there already; choose another --out to train anew.")
            return
        pictures = pictures_of(name, out, episodes)
        settings = {"seed": seed, "episodes": episodes, **asdict(model)}
        network, losses = train_network(model, pictures.values, folder, settings)
        classifier, accuracy = train_classifier(pictures, seed)
        with writing(folder / FEATURES):
            classifier.save(folder / FEATURES, accuracy, episodes)
        save_pipeline(network, model.chain, folder / "pipeline")
        (folder / STATE).unlink()
    say(f"The loss was {losses[-1]:.4f} in the last tenth, {losses[0]:.4f} in the first.")
    say(f"The network for features names {accuracy:.1%} of held-out pictures rightly.")
    say(f"Pipeline: {folder / 'pipeline'} ({parameters(network):,} parameters)")


def train_network(
    model: Model, values: Tensor, folder: Path, settings: dict[str, Any]
) -> tuple[nn.Module, list[float]]:
    """The averaged network that predicts ε, and its loss in each tenth of the training.

    Raises:
        ValueError: what was begun in the folder has other settings.
    """
    from diffusers import DDPMScheduler

    torch.manual_seed(settings["seed"])
    network = model.unet().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), model.rate, weight_decay=1e-3)
    averaged, begun, losses = EMA(network, max_decay=0.999), 0, torch.zeros(10, device="cpu")
    parts = {"network": network, "averaged": averaged.network, "optimizer": optimizer}
    if (folder / STATE).exists():
        there = torch.load(folder / STATE, weights_only=True)
        check_same(folder, there["settings"], settings)
        begun, losses = there["step"], there["losses"]
        for key, part in parts.items():
            part.load_state_dict(there[key])
    rates = rate_of(model)
    scheduler = DDPMScheduler(num_train_timesteps=model.chain)
    with Stage("training", model.steps, begun, measuring=True) as stage:
        for step in range(begun, model.steps):
            for group in optimizer.param_groups:
                group["lr"] = model.rate * rates(step)
            loss = _loss(network, scheduler, values, model.batch, settings["seed"], step)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            averaged.update(network, step + 1)
            losses[10 * step // model.steps] += loss.detach()
            stage.update(step + 1, f"loss {float(loss.detach()):.3f}")
            if (step + 1) % KEEP_EVERY == 0 or step + 1 == model.steps:
                state: dict[str, Any] = {k: part.state_dict() for k, part in parts.items()}
                _keep(folder, state | {"step": step + 1, "losses": losses, "settings": settings})
    counts = torch.bincount(
        10 * torch.arange(model.steps, device="cpu") // model.steps, minlength=10
    )
    return averaged.network, (losses / counts.clamp(min=1))[counts > 0].tolist()


def rate_of(model: Model) -> Callable[[int], float]:
    """The share of the learning rate at a step: a short rise, then a cosine to zero."""
    rise = max(1, model.steps // 50)
    return lambda step: (
        min(1.0, (step + 1) / rise) * 0.5 * (1 + math.cos(math.pi * step / model.steps))
    )


def _loss(
    network: nn.Module, scheduler: Any, values: Tensor, batch: int, seed: int, step: int
) -> Tensor:
    random = torch.Generator("cpu").manual_seed(1_000_003 * seed + step)
    clean = values[torch.randint(len(values), (batch,), generator=random, device="cpu")]
    noise = torch.randn(clean.shape, generator=random, device="cpu")
    steps = scheduler.config.num_train_timesteps
    times = torch.randint(steps, (batch,), generator=random, device="cpu")
    noisy = scheduler.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
    return functional.mse_loss(network(noisy, times).sample, noise)


def _keep(folder: Path, state: dict[str, Any]) -> None:
    with replacing(folder / STATE) as file:
        torch.save(state, file)


def train_classifier(pictures: Pictures, seed: int) -> tuple[Classifier, float]:
    """A small network that names a picture's label, and its share of right answers on a sixth of
    the pictures, which it was not trained on."""
    torch.manual_seed(seed)
    order = torch.randperm(len(pictures.values), device="cpu")
    held, used = order[: len(order) // 6], order[len(order) // 6 :]
    network = Classifier(pictures.values.shape[1], len(pictures.names))
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, weight_decay=1e-2)
    batches = max(1, len(used) // 64)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, PASSES * batches)
    with Stage("training the network for features", PASSES, measuring=True) as stage:
        for done in range(PASSES):
            for chosen in used[torch.randperm(len(used), device="cpu")].chunk(batches):
                answer = network(pictures.values[chosen])
                optimizer.zero_grad()
                functional.cross_entropy(answer, pictures.labels[chosen]).backward()
                optimizer.step()
                rates.step()
            stage.update(done + 1)
    network.eval().requires_grad_(False)
    right = network(pictures.values[held]).argmax(1) == pictures.labels[held]
    return network, float(right.float().mean())


def save_pipeline(network: Any, chain: int, folder: Path) -> None:
    """A DDPMPipeline as diffusers saves it, whole or not at all."""
    from diffusers import DDPMPipeline, DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=chain)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    network.to(memory_format=torch.contiguous_format)
    with writing(folder):
        DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(part)
        os.replace(part, folder)
