"""A validated config and the objects it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .assembly import (
    NetworkMaker,
    Problems,
    at,
    build_masks,
    build_model,
    build_pool,
    build_router,
    check_followers,
    pair_scorers,
    probe,
    shapes_of,
)
from .cache import CacheSettings
from .config import (
    OPTIMIZERS,
    RecipeConfig,
    RouterConfig,
    Spec,
    StageConfig,
    build,
    build_scheduler,
    load_config,
    parse_recipe,
    recipe_dict,
)
from .data import (
    DATASETS,
    Corruption,
    Dataset,
    Split,
    fingerprint_of,
    labelled_part,
    novel_classes,
    with_corruptions,
    with_episodes,
    with_labels,
    with_novel_classes,
    with_policy,
)
from .errors import ConfigError, MoekdError
from .evaluation import embedding_settings
from .model import Model
from .objectives import OBJECTIVES, PairScorer
from .program import LoopSettings, Phase, Program
from .randomness import derived_seed, seeded
from .routers import Shapes
from .schedules import SCHEDULES
from .stages import STAGES, Monitor, RunData, Stage, StageSettings, WeightedObjective
from .teachers import TeacherPool
from .transforms import TRANSFORMS


class Recipe:
    """Data, student, teachers, masks, router, stages and evaluation: one validated object.

    Args:
        config: the validated config.
        source: where it came from, for messages.
    """

    def __init__(self, config: RecipeConfig, source: str = "config") -> None:
        self.config, self.source = _enabled(config, source), source

    @classmethod
    def load(cls, config: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a config file or a shipped config.

        Args:
            config: path of a YAML file, or name of a shipped config ("quickstart").
            overrides: "key=value" strings such as `router.selection.k=2`.

        Raises:
            ConfigError: with every mistake in the file.
        """
        raw, source = load_config(str(config), overrides)
        return cls(parse_recipe(raw, source), source)

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved config as plain values, defaults written out."""
        return recipe_dict(self.config)

    def build(self, dataset: Dataset | None = None, make: NetworkMaker | None = None) -> Program:
        """Load the data and build all models; the parts depend on the seed and their own name only.

        Args:
            dataset: the data set of this config, if it is loaded already.
            make: makes the networks, if not `make_network`.

        Raises:
            MoekdError: whatever does not fit: fields, taps, shapes, classes, routers.
        """
        config, seed = self.config, self.config.seed
        dataset = build(config.data.spec, DATASETS, where="data") if dataset is None else dataset
        data = self.run_data(dataset)
        fingerprint = dataset.fingerprint()
        if config.data.corruptions:
            fingerprint += f"/{fingerprint_of(self._corruptions(), seed)}"
        stacking = config.masks.stacking if config.masks else "independent"
        problems, sample = Problems(), data.split("train").__getitems__([0, min(1, len(data.split("train")) - 1)])
        with problems:
            test_splits = self._test_splits(data)
        with problems:
            pool = build_pool(config.teachers, dataset, seed, stacking, make)
        with problems:
            student = self._student(dataset, make)
            probe(student, "student", sample, data.num_classes, dataset)
        problems.tell()
        check_followers(pool, student)
        for name in pool.names:
            with problems:
                probe(pool.teacher(name), f"teachers.{name}", sample, data.num_classes, dataset)
        problems.tell()
        if config.masks is not None:
            build_masks(config.masks.spec, pool, sample, seed)
        shapes = shapes_of(student, pool, sample)
        title = config.title or "student"
        main = self._phase("main", title, config.stages, config.router, student, pool, data, shapes)
        phases = [replace(main, stacking=stacking)]
        for name, baseline in config.baselines.items():
            fresh, router = self._student(dataset, make), baseline.router or config.router
            phase = self._phase(name, baseline.title or name, baseline.stages, router, fresh, pool, data, shapes)
            phases.append(replace(phase, after=baseline.after, stacking=baseline.stacking or stacking))
        return Program(
            phases=phases,
            pool=pool,
            data=data,
            test_splits=test_splits,
            loop=LoopSettings(**{**vars(config.trainer), "trackers": tuple(config.trainer.trackers)}),
            config=self.to_dict(),
            dataset_fingerprint=fingerprint,
            seed=seed,
            about=self._about(dataset, student),
            cache=CacheSettings(**vars(config.cache)),
            headline=config.evaluation.headline,
            resolve=resolved,
        )

    def run_data(self, dataset: Dataset) -> RunData:
        """Return the splits of a data set as this config wants them: policies, corruptions, labels, evaluation."""
        config = self.config.data
        splits: dict[str, Split] = {
            name: with_policy(split, config.on_bad_sample, config.max_bad_fraction)
            for name, split in dataset.splits.items()
        }
        splits = with_corruptions(splits, self._corruptions(), dataset.fields, self.config.seed)
        amount, label_seed = config.labels, derived_seed(self.config.seed, "labels") % 2**32
        base: list[int] | None = None
        if config.novel is None:
            splits["train"] = with_labels(splits["train"], amount, label_seed, config.labelled_share)
        else:
            if config.labelled_share is not None:
                raise ConfigError("data.labelled_share: not together with data.novel, which chooses rows itself")
            novel = novel_classes(config.novel.classes, dataset.class_names, config.novel.seed)
            base = [label for label in range(dataset.num_classes) if label not in novel]
            splits = with_novel_classes(splits, novel, dataset.num_classes, config.novel.training, amount, label_seed)
        splits.setdefault("labelled", labelled_part(splits["train"]))  # a data set's own split of this name stays
        if config.episodes is not None:
            with at("data.episodes"):
                splits["episodes"] = with_episodes(splits["labelled"], **vars(config.episodes))
        batch, seed = self.config.evaluation.batch_size, self.config.seed
        names, void = list(dataset.class_names), dataset.void_class
        embeddings = embedding_settings(self.config.evaluation, dataset)
        fields = {name: vars(spec) | dataset.input_recipe(name) for name, spec in dataset.fields.items()}
        run = RunData(splits, names, config.batch_size, batch, config.num_workers, seed, void, fields, embeddings, base)
        return replace(run, worker_timeout=config.worker_timeout)

    def _corruptions(self) -> list[Corruption]:
        sections = (vars(section) for section in self.config.data.corruptions)
        return [
            Corruption(**section | {"splits": section["splits"] and tuple(section["splits"])}) for section in sections
        ]

    def _test_splits(self, data: RunData) -> list[str]:
        return [name for name in self.config.evaluation.splits if data.split(name)]

    def _student(self, dataset: Dataset, make: NetworkMaker | None) -> Model:
        return build_model(self.config.student, "student", dataset, self.config.seed, make)

    def _phase(
        self,
        name: str,
        title: str,
        stages: Sequence[StageConfig],
        router: RouterConfig | None,
        student: Model,
        pool: TeacherPool,
        data: RunData,
        shapes: Shapes,
    ) -> Phase:
        where = "" if name == "main" else f"baselines.{name}."
        scorers = pair_scorers(pool)
        built, problems = list[Stage](), Problems()
        for stage in stages:
            with problems:
                built.append(self._stage(stage, f"{where}stages.{stage.name}", data, shapes, scorers))
        problems.tell()
        uses_router = any(w.objective.routable for stage in built for w in stage.settings.objectives)
        wanted = router if name == "main" or uses_router else None
        with seeded(self.config.seed, f"router/{name}"):
            chosen = build_router(wanted, pool, data.num_classes, f"{where}router", shapes) if wanted else None
        return Phase(name, title, student, chosen, built)

    def _stage(
        self, config: StageConfig, where: str, data: RunData, shapes: Shapes, scorers: Mapping[str, PairScorer]
    ) -> Stage:
        context = {
            "scorers": scorers,
            "num_classes": data.num_classes,
            "shapes": shapes,
            "train_split": data.splits.get(config.split),
            "base_classes": data.base_classes,
        }
        with seeded(self.config.seed, where):
            objectives = [
                WeightedObjective(
                    build(o.spec, OBJECTIVES, where=f"{where}.objectives[{i}]", **context),
                    o.name,
                    build(o.weight, SCHEDULES, where=f"{where}.objectives[{i}].weight")
                    if isinstance(o.weight, Spec)
                    else o.weight,
                )
                for i, o in enumerate(config.objectives)
            ]
            transforms = [
                build(spec, TRANSFORMS, where=f"{where}.transforms[{i}]", field_info=data.fields)
                for i, spec in enumerate(config.transforms)
            ]
        settings = StageSettings(
            name=config.name,
            trains=tuple(config.trains),
            objectives=objectives,
            transforms=transforms,
            optimizer=partial(_optimizer, config.optimizer, f"{where}.optimizer"),
            scheduler=partial(_scheduler, config.scheduler, f"{where}.scheduler") if config.scheduler else None,
            epochs=config.epochs,
            steps=config.steps,
            monitor=Monitor(config.monitor.metric, config.monitor.mode, config.monitor.split)
            if config.monitor
            else None,
            patience=config.patience,
            clip_norm=config.clip_norm,
            accumulate=config.accumulate,
            micro_batch=config.micro_batch,
            ema=config.ema,
            cache=config.cache,
            split=config.split,
        )
        stage: Stage = build(config.spec, STAGES, where=where, settings=settings)
        return stage

    def _about(self, dataset: Dataset, student: Model) -> dict[str, Any]:
        config = self.config
        return {
            "title": config.title or self.source,
            "dataset": config.data.spec.kind,
            "dataset_licence": dataset.licence,
            "student": {
                "kind": config.student.spec.kind,
                "inputs": list(config.student.inputs),
                "parameters": sum(p.numel() for p in student.parameters()),
            },
            "paper": config.paper.model_dump() if config.paper else None,
        }


def resolved(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a resolved config, perhaps of an earlier version, with today's defaults; as it is if it can't be read."""
    try:
        return recipe_dict(parse_recipe(config, "checkpoint"))
    except MoekdError:
        return dict(config)


def _enabled(config: RecipeConfig, source: str) -> RecipeConfig:
    """Return the config without the stages that are switched off."""
    everything = {"stages": config.stages, **{f"baselines.{n}.stages": b.stages for n, b in config.baselines.items()}}
    if empty := [where for where, stages in everything.items() if not any(stage.enabled for stage in stages)]:
        raise ConfigError(f"{source}: {empty[0]}: no stage is enabled; leave 'enabled: false' out of one of them")
    if all(stage.enabled for stages in everything.values() for stage in stages):
        return config
    baselines = {
        name: baseline.model_copy(update={"stages": [stage for stage in baseline.stages if stage.enabled]})
        for name, baseline in config.baselines.items()
    }
    stages = [stage for stage in config.stages if stage.enabled]
    return config.model_copy(update={"stages": stages, "baselines": baselines})


def _optimizer(spec: Spec, where: str, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = build(spec, OPTIMIZERS, where=where, params=parameters)
    return optimizer


def _scheduler(
    spec: Spec, where: str, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    return build_scheduler(spec, optimizer, steps, where)
