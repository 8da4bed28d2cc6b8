"""Pictures at K = 1000: pixel DDPMs of diffusers' classes are trained here, on scikit-learn's
digits and on views of this package's robots, and sampled by ASD and by others.

    python -m asd_policy.eval.studies.pictures train digits        # or scenes
    python -m asd_policy.eval.studies.pictures calls digits
    python -m asd_policy.eval.studies.pictures quality digits
    python -m asd_policy.eval.studies.pictures clock digits

The same command goes on where it was stopped. It wants the extras `sim` and `diffusers`, and for
digits scikit-learn. Nothing is downloaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from asd_policy.eval.script import run_script


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status, as ``run_script``."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is on this disk
    return run_script("pictures", ("train", "calls", "quality", "clock"), __doc__, words)


if __name__ == "__main__":
    sys.exit(main())
