"""`moekd` with the tiny kinds, also in the processes that it starts: `python -m tests.ablation.command ablate ...`."""

from __future__ import annotations

import logging
import sys

from ..engine.tiny import register

WORKER = "worker"


def main() -> None:
    """Serve as a worker, or run the command line with such workers."""
    register()
    if sys.argv[1] == WORKER:
        from moekd.ablation.run import run_job
        from moekd.ablation.worker import serve

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        serve(run_job, int(sys.argv[2]))
        return
    import moekd.ablation.local_backend as local
    from moekd.cli.main import main as moekd

    local.worker_command = lambda: [sys.executable, "-m", "tests.ablation.command", WORKER]
    moekd()


if __name__ == "__main__":
    main()
