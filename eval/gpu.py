"""Train the 64 M network and run the whole benchmark from a bare checkout, nothing installed.

    python eval/gpu.py --export STORE demos.npz           # at home: the demonstrations as one file
    python eval/gpu.py --data demos.npz --out DIR         # there: PyTorch, NumPy, safetensors
    python eval/gpu.py --layers --minutes 9 --out DIR     # only forms of the network's layers
    python eval/gpu.py --rounds --minutes 9 --out DIR     # only what a round costs beside its call

Run it again with the same --out to go on where it stopped. `--help` lists the options.
"""

import importlib.util
import sys
from pathlib import Path


def import_from_checkout() -> None:
    """Import asd_policy from the checkout, with envs/, eval/ and checkpoints/ inside it."""
    root = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "asd_policy",
        root / "asd_policy" / "__init__.py",
        submodule_search_locations=[str(root / "asd_policy"), str(root)],
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["asd_policy"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    import_from_checkout()
    from asd_policy.eval.studies.bench.gpu import main

    sys.exit(main())
