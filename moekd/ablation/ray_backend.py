"""Jobs as tasks of a Ray cluster (extra `moekd[ray]`): for ablations that need more than one machine.

With `RAY_ADDRESS` set the tasks go to that cluster ("auto": the one that runs on this machine), else to one that is
started here for the occasion and listens on this machine only. The folder of the ablation has to be shared: every
machine of the cluster must see it under the same path, and so must the data sets that the jobs read. A task that does
not see the folder fails and says so. moekd has to be installed on every machine, in the same version.

A task asks for one CPU and, in a cluster with GPUs, for its share of one. Tasks are never retried by Ray: a crash is a
failure of that job, and calling the ablation again runs it again from its last checkpoint.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import socket
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, MissingDependencyError
from .events import Job, Outcome, Run, begin_log, log_file, with_end_of
from .worker import Answer, perform


class RayBackend:
    """Runs each job as one remote task; a slot is no more than a number.

    Args:
        folder: of the ablation, on a file system that all machines share.
        workers: tasks at a time; a cluster with fewer CPUs lets the rest wait.
        run: what a job does, default the trainer.

    Raises:
        MissingDependencyError: Ray is not installed.
        ConfigError: there is no cluster at `RAY_ADDRESS`.
    """

    def __init__(self, folder: Path, workers: int, run: Run | None = None) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError as error:
            raise MissingDependencyError("ray", "ray", "running jobs on a Ray cluster") from error
        self.folder, self.run = Path(folder).resolve(), run
        self._tasks: dict[Any, tuple[int, Path]] = {}
        self._owner = not self._ray.is_initialized()
        if self._owner:
            self._connect(workers)
        gpus = gpu_share(self._ray.cluster_resources().get("GPU", 0.0), workers)
        self._task = self._ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(run_task)

    def start(self, slot: int, job: Job) -> None:
        """Submit a job; Ray starts it when a CPU is free."""
        log = begin_log(self.folder, job["key"])
        task = self._task.remote(self.run, dict(job), str(self.folder))
        self._tasks[task] = (slot, log)

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the tasks that ended, also those whose process died."""
        ended, _ = self._ray.wait(list(self._tasks), num_returns=1, timeout=seconds)
        return [self._outcome(task) for task in ended]

    def stop(self) -> None:
        """Interrupt every task, on which a run saves and ends; tasks that wait for a CPU are given up."""
        for task in self._tasks:
            self._ray.cancel(task, force=False)

    def kill(self) -> None:
        """End the processes of all tasks."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._tasks.clear()
        if self._owner:
            self._ray.shutdown()

    def _connect(self, workers: int) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = os.environ.get("RAY_ADDRESS")
        if address:
            try:
                self._ray.init(address=address, **options)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"can't reach the Ray cluster of RAY_ADDRESS={address}: {error}") from error
            return
        # Ray reports its use to its makers unless told otherwise; training sends nothing to anyone.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray.init(
            address="local", num_cpus=workers, include_dashboard=False, _node_ip_address="127.0.0.1", **options
        )

    def _outcome(self, task: Any) -> Outcome:
        slot, log = self._tasks.pop(task)
        errors = self._ray.exceptions
        try:
            answer: Answer = self._ray.get(task)
        except errors.TaskCancelledError:
            return Outcome(slot, "stopped", "stopped before it began or could save")
        except errors.WorkerCrashedError:
            return Outcome(slot, "lost", with_end_of("the process died without an answer (out of memory?)", log))
        except errors.RayError as error:
            return Outcome(slot, "lost", with_end_of(f"{type(error).__name__}: {error}", log))
        return Outcome(slot, answer.state, answer.text)


def run_task(run: Run | None, job: Job, folder: str) -> Answer:
    """Run a job in the process of a task; module-level, so that Ray finds it by its name on every machine."""
    log = log_file(Path(folder), job["key"])
    if not log.is_file():
        error = DataError(
            f"{folder} is not the folder of the ablation on the machine {socket.gethostname()}; "
            "all machines of the cluster have to share it under the same path"
        )
        return Answer("failed", str(error))
    if run is None:
        from .run import run_job

        run = run_job
    return perform(run, job, Path(folder), log)


def gpu_share(gpus: float, workers: int) -> float:
    """Return what part of a GPU a task asks for, so that `workers` tasks fit at once; at most one, 0 without GPUs."""
    whole = math.floor(gpus)
    return 1.0 / math.ceil(workers / whole) if whole else 0.0
