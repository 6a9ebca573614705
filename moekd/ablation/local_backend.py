"""Jobs in processes of this machine: fresh interpreters that live on from job to job (`worker.py`)."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MoekdError
from .events import Job, Outcome, begin_log, with_end_of

#: Seconds that a worker without a job has to leave.
LEAVE = 10.0
#: Seconds that a worker which has closed its channel, as every dying process does, has to be dead.
MOMENT = 0.1


@dataclass
class _Worker:
    """A worker process, its channel of answers, its job's log, and the job itself until the worker says it has begun.

    `used` is a worker that has run a job before.
    """

    process: subprocess.Popen[bytes]
    channel: int
    log: Path | None = None
    unread_job: Job | None = None
    used: bool = False
    deaf: bool = False
    _unread: bytes = field(default=b"", repr=False)

    def messages(self) -> list[dict[str, Any]]:
        """Return the complete lines that have come."""
        with suppress(BlockingIOError):
            while chunk := os.read(self.channel, 1 << 16):
                self._unread += chunk
            self.deaf = True
        *lines, self._unread = self._unread.split(b"\n")
        return [json.loads(line) for line in lines]

    def send(self, order: dict[str, Any]) -> None:
        """Hand over a job; a worker that is dead already is noticed by `LocalBackend.wait`."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def dismiss(self) -> None:
        """Close standard input, on which the process leaves."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def kill(self) -> None:
        """End the process and what it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


class LocalBackend:
    """Runs each slot's jobs in one worker process; a worker that dies is replaced with the next job.

    Args:
        folder: of the ablation.
        command: starts a worker, without the descriptor for its answers; default is `worker.py` on the trainer.
    """

    def __init__(self, folder: Path, command: Sequence[str] | None = None) -> None:
        self.folder = Path(folder).resolve()
        self.command = list(command or worker_command())
        self._workers: dict[int, _Worker] = {}
        self._leaving: list[_Worker] = []
        self._stillborn: list[Outcome] = []
        self._selector = selectors.DefaultSelector()
        self._can_start = self._ending = False

    def start(self, slot: int, job: Job) -> None:
        """Hand a job to the slot's worker; start a worker if there is none."""
        log = begin_log(self.folder, job["key"])
        if slot in self._workers and self._workers[slot].process.poll() is not None:
            self._retire(slot)
        if slot not in self._workers:
            try:
                self._workers[slot] = self._new_worker(slot, log)
            except OSError as error:
                self._stillborn.append(Outcome(slot, "lost", f"no process could be started: {error}"))
                return
        worker = self._workers[slot]
        worker.log, worker.unread_job = log, job
        worker.send({"job": dict(job), "folder": str(self.folder), "log": str(log)})

    def wait(self, seconds: float) -> list[Outcome]:
        """Return the jobs that ended, also those whose process died.

        Raises:
            MoekdError: the first worker died before it could take a job, so none ever will.
        """
        self._selector.select(0.0 if self._stillborn else seconds)
        outcomes, self._stillborn = self._stillborn, []
        return outcomes + [outcome for slot in list(self._workers) for outcome in self._look_after(slot)]

    def stop(self) -> None:
        """Send SIGTERM to every worker, on which a run saves and ends; not to their own processes, which it needs."""
        self._ending = True
        for worker in self._workers.values():
            worker.process.terminate()

    def kill(self) -> None:
        """End all workers and what they have started."""
        self._ending = True
        for worker in (*self._workers.values(), *self._leaving):
            worker.kill()

    def close(self) -> None:
        """Dismiss the workers and wait until they are gone."""
        for slot in list(self._workers):
            self._retire(slot)
        end = time.monotonic() + LEAVE
        for worker in self._leaving:
            try:
                worker.process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.process.wait()
            worker.kill()
        self._leaving.clear()
        self._selector.close()

    def _new_worker(self, slot: int, log: Path) -> _Worker:
        """Start a process in a session of its own, so that Ctrl-C reaches the parent only, which passes it on once."""
        channel, far_end = os.pipe()
        try:
            with open(log, "ab") as output:
                process = subprocess.Popen(
                    [*self.command, str(far_end)],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    pass_fds=[far_end],
                    start_new_session=True,
                    env=dict(os.environ, OMP_NUM_THREADS="1"),
                )
        except BaseException:
            os.close(channel)
            raise
        finally:
            os.close(far_end)
        os.set_blocking(channel, False)
        self._selector.register(channel, selectors.EVENT_READ, slot)
        return _Worker(process, channel)

    def _look_after(self, slot: int) -> list[Outcome]:
        """Read the answer of a slot's worker; clear away a worker that is dead."""
        worker = self._workers[slot]
        # Asked before the channel is read: what a dead worker has said is all there.
        code = worker.process.poll()
        outcomes = []
        for message in worker.messages():
            if "ready" in message:
                self._can_start = True
                continue
            if "begun" in message:
                worker.unread_job = None
                continue
            outcomes.append(Outcome(slot, message["state"], message["text"]))
            worker.log, worker.used = None, True
            if not message["usable"]:
                self._retire(slot)
                return outcomes
        if code is None and worker.deaf and self._mute(worker):
            with suppress(subprocess.TimeoutExpired):
                code = worker.process.wait(MOMENT)
        if code is not None:
            self._retire(slot)
            if worker.used and worker.unread_job is not None and not self._ending:
                # It was dying when the job came, which therefore has not begun.
                self.start(slot, worker.unread_job)
            elif worker.log is not None:
                outcomes.append(self._lost(slot, worker, code))
        return outcomes

    def _lost(self, slot: int, worker: _Worker, code: int) -> Outcome:
        assert worker.log is not None
        text = with_end_of(how_it_ended(code), worker.log)
        if not (self._can_start or self._ending):
            raise MoekdError(f"no worker can start: {text}\ncommand: {' '.join(self.command)}")
        return Outcome(slot, "lost", text)

    def _mute(self, worker: _Worker) -> bool:
        """Stop listening to a worker; return whether anybody did."""
        listening = worker.channel in self._selector.get_map()
        if listening:
            self._selector.unregister(worker.channel)
        return listening

    def _retire(self, slot: int) -> None:
        """Free a slot of its worker, which leaves by itself."""
        worker = self._workers.pop(slot)
        self._mute(worker)
        os.close(worker.channel)
        worker.dismiss()
        if worker.process.poll() is None:
            self._leaving.append(worker)
        else:
            worker.kill()


def worker_command() -> list[str]:
    """Return what starts a worker that sees the same modules as this process.

    `python -m` puts the working folder in front of all modules, where any file may have the name of a library; it is
    left out unless this process has it too.
    """
    here = Path.cwd()
    alike = any(Path(entry or ".").resolve() == here for entry in sys.path)
    return [sys.executable, *([] if alike else ["-P"]), "-m", "moekd.ablation.worker"]


def how_it_ended(code: int) -> str:
    """Say what the return code of a process means."""
    if code >= 0:
        return f"the process ended with exit code {code}"
    if -code == signal.SIGKILL:
        return f"the process was killed by signal {-code} (out of memory?)"
    return f"the process was killed by signal {-code} ({signal.strsignal(-code) or 'unknown'})"
