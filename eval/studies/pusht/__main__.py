"""PushT by LeRobot: a scripted expert demonstrates, lerobot-train trains, samplers play the same
seeds in LeRobot's own rollouts.

    python -m asd_policy.eval.studies.pusht demos
    python -m asd_policy.eval.studies.pusht train
    python -m asd_policy.eval.studies.pusht compare

The same command goes on where it was stopped. It wants an environment with LeRobot
(asd_policy/integrations/README.md) and, of this package's `sim` extra, pydantic, annotated-types,
scipy, tyro and rich.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from asd_policy.eval.script import run_script


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status, as ``run_script``."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is on this disk
    return run_script("pusht", ("demos", "train", "compare"), __doc__, words)


if __name__ == "__main__":
    sys.exit(main())
