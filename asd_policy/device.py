"""Where networks run. Importing this is quick: torch comes when a device is looked for."""

from __future__ import annotations

from asd_policy.errors import InputError


def resolve_device(device: str) -> str:
    """ "auto" as cuda where there is one, else cpu; anything else must exist.

    Raises:
        ValueError: not a device that torch can use here.
    """
    import torch

    count = torch.cuda.device_count()
    known = ["cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if device == "auto":
        return "cuda" if count else "cpu"
    if device not in known:
        raise InputError(
            f"--device must be auto or one that torch can use here ({', '.join(known)}); "
            f"got {device!r}"
        )
    return device
