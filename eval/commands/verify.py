"""`asd-policy verify`. Importing this is quick: torch comes when the run starts."""

from __future__ import annotations

from typing import Annotated

import tyro

from asd_policy.eval.runs.files import check_output_folder
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.progress import Stage


def main_verify(options: Annotated[VerifyOptions, tyro.conf.arg(name="")]) -> int:
    """Test whether a sampler has the same distribution as sequential DDPM.

    With no options, it tests ASD on the shipped Lift policy, with 1000 chunks of each sampler at 8
    observations (some minutes on two CPU cores). It prints a table and one sentence, and keeps the
    chunks, every number and a figure under outputs/verify/.

    Exit status 0: they are equal as far as could be told; 1: the distributions differ; 2: too few
    chunks to tell (or an error of use, which starts with "error:").
    """
    if options.out is not None:  # refused at once, not after seconds of loading
        check_output_folder(options.out)
    with Stage("loading PyTorch"):
        from asd_policy.eval.studies.verify.run import run_verify

    return run_verify(options)
