"""Train the 64 M network and run the whole benchmark from a bare checkout, nothing installed.

    python eval/gpu.py --export STORE demos.npz           # at home: the demonstrations as one file
    python eval/gpu.py --data demos.npz --out DIR         # there: PyTorch, NumPy, safetensors

Run it again with the same --out to go on where it stopped. `--help` lists the options.
"""

import importlib.util
import sys
from pathlib import Path


def import_from_checkout() -> None:
    """Make asd_policy importable from the checkout, with envs/, eval/ and checkpoints/ inside it.

    The folder of this script must not be searched: it holds modules named as the standard
    library's are.
    """
    root = Path(__file__).resolve().parents[1]
    sys.path[:] = [str(root), *(p for p in sys.path if Path(p or ".").resolve() != root / "eval")]
    spec = importlib.util.find_spec("asd_policy")
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    package.__path__.append(str(root))  # asd_policy.eval is <root>/eval
    sys.modules["asd_policy"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    import_from_checkout()
    from asd_policy.eval.benchmarks.gpu import main

    sys.exit(main())
