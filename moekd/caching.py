"""Stored signals of teachers as people handle them: filled ahead of a run, listed, checked, cleared up."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .atomic import FolderLock
from .cache import SignalStore, Table, TeacherPass
from .cache.table import MANIFEST
from .errors import DataError
from .program import Phase, Program
from .progress import Progressbar
from .recipe import Recipe
from .stages import StageContext, StageSettings
from .stages.teacher_plan import TeacherPlan, plan_teachers, prepared_pass
from .stages.trainable import owner_and_path, train_only
from .trainer import make_accelerator

logger = logging.getLogger(__name__)

#: Largest difference between stored and fresh signals that rounding explains, by codec.
ROUNDING = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 1e-2, "int8": 1e-2}


@dataclass(frozen=True)
class Filled:
    """What became of a stage.

    Attributes:
        stage: phase and name.
        signals: what is kept, and of which teachers.
        nbytes: bytes on the disk.
        seconds: time it took.
        reason: why nothing is kept.
    """

    stage: str
    signals: str = ""
    nbytes: int = 0
    seconds: float = 0.0
    reason: str = ""


@dataclass(frozen=True)
class Condition:
    """What a table is and whether it is sound.

    Attributes:
        folder: its folder.
        table: None where the manifest can't be read.
        problems: what is damaged.
    """

    folder: Path
    table: Table | None
    problems: Sequence[str] = ()

    @property
    def complete(self) -> bool:
        """True when all shards are there."""
        return self.table is not None and not self.table.missing and not self.problems


def build_caches(recipe: Recipe, folder: Path | None = None, quiet: bool = False) -> list[Filled]:
    """Fill the folder with what the stages of a recipe will read, as far as its teachers are ready.

    Args:
        recipe: the recipe.
        folder: where to, by default the config's.
        quiet: no progress bars.
    """
    found = []
    with Progressbar(enabled=not quiet) as progress:
        for where, store, teachers, plan, reason in _stages(recipe, folder, progress):
            if teachers is None:
                found.append(Filled(where, reason=reason))
                continue
            started = time.monotonic()
            progress.start(f"{where}: teachers' signals", len(teachers.split))
            cache = store.cache(teachers, mapped=True)
            progress.finish()
            signals = f"{plan.needs} of {', '.join(teachers.variants)}"
            found.append(Filled(where, signals, cache.nbytes, time.monotonic() - started))
    return found


def recheck_caches(recipe: Recipe, folder: Path | None = None, rows: int = 32) -> dict[str, float]:
    """Run the teachers again on a few samples of each stage, and compare with what is stored.

    Args:
        recipe: the recipe.
        folder: where the signals are, by default the config's.
        rows: samples a stage.

    Returns:
        The largest relative difference by stage, teacher and signal.

    Raises:
        DataError: something is not stored, or differs by more than rounding.
    """
    found: dict[str, float] = {}
    with Progressbar(enabled=False) as progress:
        for where, store, teachers, _, _ in _stages(recipe, folder, progress):
            if teachers is None:
                continue
            for (variant, signal), difference in store.recheck(teachers, rows).items():
                found[f"{where}: {signal} of {variant}"] = difference
                codec = store.settings.codec_of(signal)
                if difference > ROUNDING.get(codec.kind, 1 / codec.k):
                    raise DataError(
                        f"{store.folder}: {signal} of teacher '{variant}' differs by {difference:.2g} from what it "
                        f"says now, more than {codec} explains; does it depend on chance, or on more than its "
                        "fingerprint?"
                    )
    return found


def inspect_folder(folder: Path, checksums: bool = False) -> list[Condition]:
    """Return what lies in a folder of stored signals.

    Args:
        folder: the folder.
        checksums: read all shards and compare their sha256.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; stored signals lie where cache.folder says, or in $MOEKD_CACHE_HOME")
    found = []
    for manifest in sorted(folder.glob(f"*/{MANIFEST}")):
        try:
            table = Table.open(manifest.parent)
        except DataError as error:
            found.append(Condition(manifest.parent, None, [str(error)]))
            continue
        sound = set(range(table.shards)) - table.missing
        problems = [problem for index in sorted(sound) if checksums and (problem := table.damage(index))]
        found.append(Condition(manifest.parent, table, problems))
    return found


def prune(folder: Path, days: float | None = None, damaged: bool = False, everything: bool = False) -> list[Path]:
    """Delete tables; those that a process fills now are left alone.

    Args:
        folder: of the tables.
        days: delete what was not used for so many days.
        damaged: delete what is damaged or not complete.
        everything: delete all tables.

    Returns:
        The folders that were deleted.
    """
    deleted = []
    for condition in inspect_folder(folder, checksums=damaged):
        idle = 0.0 if condition.table is None else (time.time() - condition.table.last_used) / 86400
        old = days is not None and condition.table is not None and idle >= days
        if not (everything or old or (damaged and not condition.complete)):
            continue
        try:
            with FolderLock(condition.folder):
                (condition.folder / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(condition.folder)
            deleted.append(condition.folder)
        except DataError as error:
            logger.warning("%s", error)
    return deleted


def _stages(
    recipe: Recipe, folder: Path | None, progress: Progressbar
) -> Iterator[tuple[str, SignalStore, TeacherPass | None, TeacherPlan, str]]:
    """Yield for every stage its name, the store, and what has to be run for it, or why nothing is kept."""
    program = recipe.build()
    accelerator = make_accelerator(program)
    store = SignalStore(folder or program.cache.place, program.dataset_fingerprint, program.cache)
    trained: set[str] = set()
    for phase in program.phases:
        for stage in phase.stages:
            where, settings = f"{phase.name}/{stage.name}", stage.settings
            context = StageContext(
                accelerator,
                program.models(phase),
                program.data,
                phase.name,
                _unused,
                _unused,
                progress,
                cache=program.cache,
            )
            plan = _plan(program, phase, settings, accelerator.device)
            early = sorted({name for name in plan.variants if _changed(name, trained)})
            trained |= {owner_and_path(name)[0] for name in stage.changes} - {"student", "router", "objectives"}
            reason = plan.reason or ("" if plan.variants else "no teacher takes part")
            if early:
                reason = f"an earlier stage trains {', '.join(early)}; its run fills the folder"
            ready = None if reason else prepared_pass(context, settings, plan)
            yield where, store, ready, plan, reason


def _plan(program: Program, phase: Phase, settings: StageSettings, device: torch.device) -> TeacherPlan:
    models = program.models(phase)
    train_only(models, settings.trains, nn.ModuleList(settings.objectives))
    models.pool.to(device)
    return plan_teachers(models, program.data, settings, program.cache)


def _changed(variant: str, trained: set[str]) -> bool:
    """Tell whether an earlier stage trains a part of a variant."""
    teacher, masked, _ = variant.partition("/")
    return bool({"teachers", f"teachers.{teacher}"} & trained) or (bool(masked) and "masks" in trained)


def _unused(*arguments: object) -> None:
    """Stand for services of a run that are not needed here."""
