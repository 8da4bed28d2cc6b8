"""Where networks run. Importing this is quick: torch comes when a device is looked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asd_policy.errors import InputError

if TYPE_CHECKING:
    import torch


def resolve_device(device: str) -> str:
    """ "auto" as cuda where there is one, else cpu; anything else must exist.

    Raises:
        ValueError: not a device that torch can use here.
    """
    known = _known()
    if device == "auto":
        return "cuda" if "cuda" in known else "cpu"
    if device not in known:
        raise _refused("--device must be auto or one", device)
    return device


def usable_device(device: Any) -> torch.device:
    """A device of any kind that PyTorch knows, once something could be put there.

    Raises:
        ValueError: not a device that torch can use here.
    """
    import torch

    try:
        torch.empty(0, device=(made := torch.device(device)))
    except (
        RuntimeError,
        AssertionError,
        TypeError,
    ) as error:  # as torch's builds and devices have it
        raise _refused("device must be one", device) from error
    return made


def _known() -> list[str]:
    import torch

    count = torch.cuda.device_count()
    return ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]


def _refused(wanted: str, device: object) -> InputError:
    return InputError(
        f"{wanted} that torch can use here ({', '.join(_known())}); got {device!r:.80}"
    )
