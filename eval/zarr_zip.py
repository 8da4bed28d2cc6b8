"""A zarr group (format 2, one chunk an array, zlib) as one zip file, written and read at once.

Any zarr opens such a file (`zarr.storage.ZipStore`). It is written here without that library, whose
threads would run beside the control loop: the format of arrays that are a single chunk is a few
lines (https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html).
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_TIME = (1980, 1, 1, 0, 0, 0)  # the same content makes the same file
_LEVEL = 1


def pack(attributes: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """The file's content, for a group with these attributes and arrays."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, _TIME), content)

        add(".zgroup", _json({"zarr_format": 2}))
        add(".zattrs", _json(dict(attributes)))
        for name, values in arrays.items():
            add(f"{name}/.zarray", _json(_metadata(values)))
            if values.size:
                add(f"{name}/{_chunk(values.ndim)}", zlib.compress(values.tobytes(), _LEVEL))
    return packed.getvalue()


def unpack(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Attributes and arrays of a file that `pack` made.

    Raises:
        ValueError: it is damaged, or was made otherwise. OSError: it cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = {name: archive.read(name) for name in archive.namelist()}  # checks the CRCs
        attributes = json.loads(content[".zattrs"])
        names = [name.partition("/")[0] for name in content if name.endswith("/.zarray")]
        return attributes, {name: _array(content, name) for name in names}
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _array(content: Mapping[str, bytes], name: str) -> np.ndarray:
    metadata = json.loads(content[f"{name}/.zarray"])
    shape = tuple(metadata["shape"])
    values = np.zeros(shape, metadata["dtype"])
    if metadata != _metadata(values):
        raise ValueError(f"the array {name!r} is stored in another way")
    if not values.size:
        return values
    raw = zlib.decompress(content[f"{name}/{_chunk(len(shape))}"])
    return np.frombuffer(raw, values.dtype).reshape(shape).copy()


def _metadata(values: np.ndarray) -> dict[str, Any]:
    return {
        "zarr_format": 2,
        "shape": list(values.shape),
        "chunks": [max(1, size) for size in values.shape],
        "dtype": values.dtype.str,
        "compressor": {"id": "zlib", "level": _LEVEL},
        "fill_value": 0,
        "order": "C",
        "filters": None,
    }


def _chunk(dimensions: int) -> str:
    return ".".join(["0"] * dimensions)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
