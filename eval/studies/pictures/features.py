"""What pictures are compared by: the features of a network that was trained to tell them apart.

No Inception weights come with this package. Where torchvision's are on this disk, they are taken
(`Inception`); both give features, and neither's distances may be held against the other's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from asd_policy.errors import InputError

FEATURES = "features.safetensors"
WIDTH = 32  # features of a picture
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours

Extract = Callable[[Tensor], np.ndarray]


class Classifier(nn.Module):
    """Three convolutions and a linear layer: pictures (N, C, H, W) in [-1, 1] → (N, labels)."""

    def __init__(self, channels: int, labels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, WIDTH, 3, stride=2, padding=1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(WIDTH, labels)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(self.body(x))
        return answer

    def save(self, path: Path, accuracy: float, episodes: int) -> None:
        """Weights, with what `Kept` tells beside them."""
        notes = {"accuracy": f"{accuracy:.4f}", "episodes": str(episodes)}
        save_file(self.state_dict(), path, metadata=notes)


@dataclass(frozen=True)
class Kept:
    """A trained `Classifier`.

    Attributes:
        extract: features (N, 32) float64 of pictures (N, C, H, W). accuracy: share of held-out
            pictures that it names rightly. episodes: of scenes, that were rendered for it.
    """

    extract: Extract
    accuracy: float
    episodes: int


def classifier_features(path: Path) -> Kept:
    """The network that `train` kept.

    Raises:
        ValueError: there is none.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing; `train` makes it")
    with safe_open(path, "pt") as kept:
        weights = {key: kept.get_tensor(key) for key in kept.keys()}  # noqa: SIM118 - no dict
        notes = kept.metadata()
    network = Classifier(weights["body.0.weight"].shape[1], len(weights["head.bias"]))
    network.load_state_dict(weights)
    extract = _in_batches(network.eval().body, 512)
    return Kept(extract, float(notes["accuracy"]), int(notes["episodes"]))


def standardized(extract: Extract, data: Tensor) -> Extract:
    """The same features, each with mean 0 and standard deviation 1 over the pictures `data`, so
    that distances do not depend on how large a network happens to make them."""
    found = extract(data)
    mean, spread = found.mean(0), found.std(0)
    spread[spread == 0] = 1.0
    return lambda values: (extract(values) - mean) / spread


def inception_features(path: Path) -> Extract:
    """Features (N, 2048) float64 of pictures by torchvision's Inception v3.

    Args:
        path: its weights, a state_dict as torchvision keeps it.

    Raises:
        ValueError: torchvision is missing, or the file holds something else.
    """
    try:
        from torchvision.models import inception_v3
    except ImportError as error:
        raise InputError(f"Inception features need torchvision ({error})") from error
    network = inception_v3(weights=None, transform_input=False, init_weights=False)
    try:
        network.load_state_dict(torch.load(path, weights_only=True))
    except (OSError, RuntimeError, KeyError, TypeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} holds no weights of Inception v3: {reason}") from error
    network.fc = nn.Identity()
    mean, spread = (torch.tensor(v, device="cpu").view(3, 1, 1) for v in (_MEAN, _SPREAD))

    def body(x: Tensor) -> Tensor:
        coloured = x.expand(-1, 3, -1, -1)
        large = nn.functional.interpolate(coloured, (299, 299), mode="bilinear")
        answer: Tensor = network((large / 2 + 0.5 - mean) / spread)
        return answer

    network.eval()
    return _in_batches(body, 32)


def _in_batches(network: Callable[[Tensor], Tensor], size: int) -> Extract:
    @torch.inference_mode()
    def extract(values: Tensor) -> np.ndarray:
        return torch.cat([network(part) for part in values.split(size)]).double().numpy()

    return extract
