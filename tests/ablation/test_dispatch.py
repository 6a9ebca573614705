"""Real workers with small jobs: order, failures of every sort, what is left of a worker that died."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moekd.ablation.dispatch import dispatch, run_jobs
from moekd.ablation.events import LONGEST_TEXT, Event
from moekd.ablation.local_backend import LocalBackend, how_it_ended, worker_command
from moekd.ablation.schedule import Schedule
from moekd.errors import ConfigError, MissingDependencyError, MoekdError

from .test_shard import forests
from .work import DEEDS, WAIT, WORKER, job, results, run

QUICK = ["write", "fail", "exit_3", "err", "kill"]
FAILURES = {
    "fail": "^as expected$",
    "err": "(?s)^RuntimeError: a bug: ünïcödé ✗ \\\\ud83d\nTraceback.*work.py.*\nRuntimeError: a bug: .*\n$",
    "exit_3": "^the process ended with exit code 3\nlast words$",
    "kill": r"^the process was killed by signal 9 \(out of memory\?\)$",
    "segfault": r"(?s)^the process was killed by signal 11 \(Segmentation fault\)\n.*work.py.* in segfault",
    "leave": "(?s)^SystemExit: 0\nTraceback.*in leave",
    "interrupt": "^stopped by signal 15 at step 7",
    "close_all": "(?s)^the process ended with exit code 1\n.*Bad file descriptor",
}


def children() -> set[int]:
    """Return the processes that this one has started, theirs included; Ray and pytest's own are not among them."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Wait for the end of a process."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False


def kinds(events: list[Event], key: str) -> list[str]:
    """Return what happened to a job."""
    return [event.kind for event in events if event.key == key]


@pytest.fixture(autouse=True)
def _nothing_left():
    before = children()
    yield
    assert children() - before == set()


@pytest.mark.parametrize("deed", FAILURES)
def test_a_failure_takes_its_dependents_and_nobody_else(tmp_path: Path, deed: str) -> None:
    jobs = [job("a", do=deed), job("b", start="a"), job("c", start="b"), job("d"), job("e", start="d")]
    failures, events = run(jobs, tmp_path)
    assert set(failures) == {"a", "b", "c"}
    assert failures["b"] == "needs a, which failed"
    assert failures["c"] == "needs b, which failed"
    with pytest.raises(MoekdError, match=FAILURES[deed]):
        raise MoekdError(failures["a"])
    assert {"d", "e"} <= set(results(tmp_path))
    assert kinds(events, "a") == ["started", "failed"]
    assert kinds(events, "b") == kinds(events, "c") == ["failed"]
    assert kinds(events, "e") == ["started", "finished"]
    assert all(event.text == failures.get(event.key, "") for event in events if event.kind != "started")


def test_a_process_that_left_others_behind_takes_them_with_it(tmp_path: Path) -> None:
    run([job("a", do="kill"), job("b")], tmp_path)
    assert gone(int((tmp_path / "a" / "child").read_text()))


def test_what_a_job_prints_is_no_answer_and_goes_to_its_log(tmp_path: Path) -> None:
    failures, _ = run([job("a", do="babble"), job("b", do="babble"), job("c")], tmp_path)
    assert failures == {}
    assert set(results(tmp_path)) == {"a", "b", "c"}
    for key in "ab":
        log = (tmp_path / "logs" / f"{key}.log").read_bytes()
        assert log.count(b"\xff\xfe\x00 no text") == 1000
        assert b'{"ready": 1}' in log
        assert b"half a character: \\ud83d" in log
    assert (tmp_path / "logs" / "c.log").read_bytes() == b""


@pytest.mark.parametrize(
    "text", ["✗ \U0001f600 übel\nsecond line\r\n\x00 \ud83d", "x" * 100_000, "", '{"state": "done"}']
)
def test_messages_of_any_kind_arrive(tmp_path: Path, text: str) -> None:
    failures, _ = run([job("ключ ✓", do="fail", config={"do": "fail", "text": text})], tmp_path)
    expected = text.encode("utf-8", "backslashreplace").decode()[-LONGEST_TEXT:]
    assert failures == {"ключ ✓": expected or "MoekdError"}
    assert (tmp_path / "logs" / "ключ ✓.log").is_file()


def test_a_job_far_larger_than_a_pipe(tmp_path: Path) -> None:
    assert run([job(f"j{n}", config={"do": "write", "rest": "x" * 10**6}) for n in range(2)], tmp_path)[0] == {}


def test_a_worker_lives_on_and_is_replaced_only_when_it_has_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    deeds = ["write", "fail", "write", "kill", "write", "err", "write"]
    run([job(f"j{place}", do=deed) for place, deed in enumerate(deeds)], tmp_path)
    done = results(tmp_path)
    assert done["j0"]["pid"] == done["j2"]["pid"]
    assert len({done[key]["pid"] for key in ("j0", "j4", "j6")}) == 3
    assert {result["threads"] for result in done.values()} == {"1"}


def test_no_more_workers_than_are_of_use(tmp_path: Path) -> None:
    chain = [job("j0")] + [job(f"j{place}", start=f"j{place - 1}") for place in range(1, 4)]
    run(chain, tmp_path / "chain", workers=3)
    assert len({result["pid"] for result in results(tmp_path / "chain").values()}) == 1
    wide = [job(f"j{place}", do="train", config={"do": "train", "steps": 60}) for place in range(3)]
    begin = time.monotonic()
    run(wide, tmp_path / "wide", workers=3)
    assert len({result["pid"] for result in results(tmp_path / "wide").values()}) == 3
    assert time.monotonic() - begin < 3 * 0.6 + 1.0


@pytest.mark.parametrize("when", ["before the job comes", "with the job unread"])
def test_a_worker_that_died_while_it_had_nothing_to_do_is_not_missed(tmp_path: Path, when: str) -> None:
    killers = []

    def kill_idle(event: Event) -> None:
        if event != Event("started", "b"):
            return
        worker = psutil.Process(results(tmp_path)["a"]["pid"])
        if when == "before the job comes":
            worker.kill()
            assert gone(worker.pid)
        else:
            worker.suspend()
            killers.append(threading.Timer(0.5, worker.kill))
            killers[0].start()

    assert run_jobs(Schedule([job("a"), job("b")]), LocalBackend(tmp_path, WORKER), 1, kill_idle) == {}
    assert results(tmp_path)["a"]["pid"] != results(tmp_path)["b"]["pid"]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(forests(), st.data())
def test_any_forest_gives_the_same_with_one_worker_and_with_three(
    tmp_path_factory: pytest.TempPathFactory, jobs: list[dict], data: st.DataObject
) -> None:
    deeds = data.draw(st.lists(st.sampled_from(["write"] * 12 + QUICK), min_size=len(jobs), max_size=len(jobs)))
    jobs = [{**entry, "config": {"do": deed}} for entry, deed in zip(jobs, deeds, strict=True)]
    found: list[tuple[Any, ...]] = []
    for workers in (1, 3):
        folder = tmp_path_factory.mktemp("forest")
        (folder / "absent").mkdir()
        (folder / "absent" / "results.json").write_text("{}")
        failures, events = run(jobs, folder, workers)
        ended = sorted(event.key for event in events if event.kind != "started")
        assert ended == sorted(entry["key"] for entry in jobs)
        assert {event.key for event in events if event.kind == "failed"} == set(failures)
        found.append((failures, set(results(folder))))
    assert found[0] == found[1]
    starts = {entry["key"]: entry["start"] for entry in jobs}
    doomed = {entry["key"] for entry in jobs if entry["config"]["do"] != "write"}
    while more := {key for key, start in starts.items() if start in doomed} - doomed:
        doomed |= more
    assert set(found[0][0]) == doomed
    assert found[0][1] == set(starts) - doomed | {"absent"}


def test_an_error_of_the_listener_ends_everything(tmp_path: Path) -> None:
    def complain(event: Event) -> None:
        raise BrokenPipeError("nobody reads")

    with pytest.raises(BrokenPipeError):
        run_jobs(Schedule([job("a", do="stubborn")]), LocalBackend(tmp_path, WORKER), 1, complain)


def test_workers_that_can_not_start_end_everything_with_what_they_said(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such module')"]
    with pytest.raises(MoekdError, match=r"(?s)no worker can start: .*exit code 1\nno such module\ncommand: "):
        run_jobs(Schedule([job("a"), job("b")]), LocalBackend(tmp_path, command), 2)


def test_a_process_that_the_system_refuses_fails_its_job(tmp_path: Path) -> None:
    backend = LocalBackend(tmp_path, [str(tmp_path / "no such program")])
    failures = run_jobs(Schedule([job("a"), job("b", start="a"), job("c")]), backend, 2)
    assert {key: text.split(":")[0] for key, text in failures.items()} == {
        "a": "no process could be started",
        "b": "needs a, which failed",
        "c": "no process could be started",
    }


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, "2"])
def test_fewer_workers_than_one(tmp_path: Path, workers: Any) -> None:
    with pytest.raises(ConfigError, match="at least 1 worker, found"):
        dispatch([job("a")], tmp_path, workers=workers)


def test_an_unknown_backend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown backend 'lokal'; did you mean 'local'"):
        dispatch([job("a")], tmp_path, backend="lokal")  # type: ignore[arg-type]


def test_ray_without_ray_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'moekd\[ray\]'"):
        dispatch([job("a")], tmp_path, backend="ray")


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    assert dispatch([], tmp_path / "folder") == {}
    assert not (tmp_path / "folder").exists()


def test_the_worker_of_the_package_is_found_and_sees_what_this_process_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert worker_command() == [sys.executable, "-P", "-m", "moekd.ablation.worker"]
    monkeypatch.syspath_prepend("")
    assert worker_command() == [sys.executable, "-m", "moekd.ablation.worker"]
    assert importlib.util.find_spec("moekd.ablation.worker") is not None


def test_what_return_codes_mean() -> None:
    assert how_it_ended(0) == "the process ended with exit code 0"
    assert how_it_ended(-15) == "the process was killed by signal 15 (Terminated)"
    assert how_it_ended(-63) == "the process was killed by signal 63 (Real-time signal 29)"


def test_every_deed_is_tried() -> None:
    assert set(DEEDS) - set(FAILURES) == {"write", "babble", "train", "stubborn", "kill_parent"}
    assert WAIT > 0
