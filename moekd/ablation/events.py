"""What the dispatcher tells about its jobs, and what a backend tells the dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..atomic import safe_name

#: One run of an ablation, ready for JSON; the dispatcher reads `key`, `start`, `setting` and `seed`.
Job = Mapping[str, Any]
#: What runs a job in the present process: the job and the folder of the ablation.
Run = Callable[[Job, Path], None]

#: Seconds that running jobs have to save themselves after a signal.
GRACE = 60.0
#: Characters of a failure's text that are kept; the end of it is the part that explains.
LONGEST_TEXT = 4000


@dataclass(frozen=True)
class Event:
    """Something happened to a job.

    Attributes:
        kind: "started"; "finished"; "failed", also for a job whose start job failed; "stopped" by a signal.
        key: the job.
        seconds: since the job was started.
        text: why it failed or stopped.
    """

    kind: Literal["started", "finished", "failed", "stopped"]
    key: str
    seconds: float = 0.0
    text: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the job in a slot ended: "done"; "failed"; "stopped" on request; "lost" with its process."""

    slot: int
    state: Literal["done", "failed", "stopped", "lost"]
    text: str = ""


class Backend(Protocol):
    """Where jobs run. A slot is the place of one job at a time; slots count from 0."""

    def start(self, slot: int, job: Job) -> None:
        """Begin a job in a free slot."""

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the jobs that ended; wait at most `seconds` for the first one."""

    def stop(self) -> None:
        """Ask all running jobs to save and end."""

    def kill(self) -> None:
        """End all processes at once."""

    def close(self) -> None:
        """Give everything back; no job is running any more."""


def log_file(folder: Path, key: str) -> Path:
    """Return the file of what a job prints: `folder/logs/<key>.log`."""
    return folder / "logs" / f"{safe_name(key, 'key of a job')}.log"


def begin_log(folder: Path, key: str) -> Path:
    """Create the log file of a job, empty: it tells about the last attempt only."""
    path = log_file(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def with_end_of(reason: str, log: Path) -> str:
    """Return the reason and the end of the job's log, if there is any."""
    try:
        with open(log, "rb") as file:
            file.seek(-min(LONGEST_TEXT, file.seek(0, 2)), 2)
            end = file.read().decode("utf-8", "replace").strip()
    except OSError:
        end = ""
    return f"{reason}\n{end}" if end else reason
