"""Every error that moekd raises on purpose is a `MoekdError`; the command line prints it without a traceback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class MoekdError(Exception):
    """Root of all expected failures: wrong input, wrong configuration, unusable files, diverged training."""

    exit_code = 1


class ConfigError(MoekdError):
    """A configuration with one or more mistakes; `problems` holds one line each."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UnknownNameError(ConfigError):
    """A registry does not know a name."""


class DataError(MoekdError):
    """A data set, file or sample that can't be used as it is."""


class ModelError(MoekdError):
    """A network, tap, mask or head that does not fit its place."""


class NonFiniteError(MoekdError):
    """A loss or gradient became NaN or infinite."""


class StoppedError(MoekdError):
    """A signal ended the run after a step, whose checkpoint is written; the exit code is 128 and the signal."""

    def __init__(self, signal: int, where: str, how: str = "the same command and --resume auto") -> None:
        super().__init__(f"stopped by signal {signal} at {where}; continue with {how}")
        self.exit_code = 128 + signal


class CheckpointError(MoekdError):
    """A checkpoint is missing, damaged or belongs to another run."""


class UnsavedError(CheckpointError):
    """A checkpoint could not be written; earlier ones are untouched."""


class PeerError(MoekdError):
    """Another process of the run failed, or does not answer."""


class MissingDependencyError(MoekdError):
    """An optional package is needed; the message names the extra to install."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}': pip install 'moekd[{extra}]'")


def did_you_mean(name: str, known: Iterable[str], limit: int = 3) -> str:
    """Return `'; did you mean a, b?'` for the close matches of `name`, or an empty string."""
    matches = get_close_matches(name, list(known), n=limit, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(match) for match in matches)}?" if matches else ""
