"""Who samples in a verification, and with what."""

from __future__ import annotations

from asd_policy.eval.samplers import sampler_settings
from asd_policy.eval.studies.verify.controls import control_roles
from asd_policy.eval.studies.verify.draws import Role
from asd_policy.eval.studies.verify.options import VerifyOptions
from asd_policy.eval.studies.verify.subjects import Subject
from asd_policy.samplers.config import SamplerConfig

SAMPLE, REFERENCE = "sample", "reference"


def sampler_config(options: VerifyOptions, name: str) -> SamplerConfig:
    """A sampler of a given name, set up as the options say."""
    settings = sampler_settings(name, options.sampling())
    return SamplerConfig(settings.pop("sampler"), **settings)


def roles_of(options: VerifyOptions, subject: Subject) -> dict[str, Role]:
    """By the names of their folders; the sample and the reference first."""
    reference = sampler_config(options, options.reference)
    roles = [
        Role(SAMPLE, sampler_config(options, options.sampler)),
        Role(REFERENCE, reference),
        *(control_roles(subject, reference) if options.controls else ()),
    ]
    return {role.name: role for role in roles}
