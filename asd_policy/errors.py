"""Errors a user can act on. Each is also the builtin that callers would expect to catch."""


class AsdPolicyError(Exception):
    """Base of this package's errors: the command line prints them without a traceback."""


class NonFiniteError(AsdPolicyError, ArithmeticError):
    """A NaN or infinity in an observation, a network output or an action."""


class CheckpointError(AsdPolicyError, ValueError):
    """A checkpoint that is missing, damaged, unsafe, or made for something else."""


class DatasetError(AsdPolicyError, ValueError):
    """A demonstration store that is missing, incomplete, or holds unusable data."""


class OutputExistsError(AsdPolicyError, FileExistsError):
    """An output folder that already holds another run."""


class OutputError(AsdPolicyError, OSError):
    """A file that could not be written: the disk is full, or the like."""


class EngineError(AsdPolicyError, RuntimeError):
    """An engine that cannot do here what was asked of it."""


class IntegrationError(AsdPolicyError, ImportError):
    """Another library, of a version that this package does not know."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does: what was finished is kept."""
