"""The keys of the file of the cross-modal suite: cells, methods, recipes, the tuning grid."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, MinLen

from ..config import Section

Metric = Literal["accuracy", "balanced_accuracy", "weighted_f1", "miou"]
Positive = Annotated[int, Ge(1)]


class Tuning(Section):
    """How the weight of each method's loss, and the teacher of its form `alone`, are chosen.

    Attributes:
        seed: seed of the runs that choose; it should not be one of those that are reported.
        weights: factors of the published weight.
    """

    seed: Annotated[int, Ge(0)]
    weights: Annotated[list[Annotated[float, Gt(0)]], MinLen(1)]


class Epochs(Section):
    """Budget: passes over the training rows.

    Attributes:
        teachers: of each teacher.
        student: of the student, over all stages of a method.
    """

    teachers: Positive
    student: Annotated[int, Ge(3)]


class Taps(Section):
    """Names of taps.

    Attributes:
        student: of the student.
        teachers: of all teachers, or one a teacher.
    """

    student: str
    teachers: str | dict[str, str]


class Levels(Section):
    """Taps of several depths that give maps of the same places, shallow to deep.

    Attributes:
        student: of the student.
        teachers: as many of all teachers, or a list for each teacher.
    """

    student: list[str]
    teachers: list[str] | dict[str, list[str]]


class CellConfig(Section):
    """A data set with a direction.

    Attributes:
        title: name in tables.
        epochs: budget.
        config: data, student, teachers, and whatever else differs from the common config.
        cross: the teacher that does not see the student's modality.
        metric: what decides in this cell; the suite's by default.
        gate: gate of the routed form, in place of the common one.
        taps: where activations are compared.
        maps: the same for objectives on maps; without it they do not apply.
        levels: the same for objectives on maps of several depths.
    """

    title: str
    epochs: Epochs
    config: dict[str, Any]
    cross: str = "crossmodal"
    metric: Metric | None = None
    gate: str | None = None
    taps: Taps = Taps(student="fc1", teachers="fc1")
    maps: Taps | None = None
    levels: Levels | None = None


class MethodConfig(Section):
    """An objective between the student and one teacher.

    Attributes:
        title: name in tables.
        objective: kind, options and published weight.
        hint: objective of a stage before.
    """

    title: str
    objective: dict[str, Any]
    hint: dict[str, Any] | None = None


class RecipeConfig(Section):
    """A method that has a form of its own.

    Attributes:
        changes: of the config, by path.
        tuned: whether it has a weight to choose.
        twin: add a teacher with the student's network and inputs.
        masks: give every tap of every teacher a mask.
        dense: only for classes of pixels.
    """

    changes: dict[str, Any]
    tuned: bool = True
    twin: bool = False
    masks: bool = False
    dense: bool = False


class SuiteConfig(Section):
    """The suite's file.

    Attributes:
        title: of the report.
        seeds: number of seeds.
        tuning: the grid.
        metric: what is compared.
        default: cells that run when none are named.
        common: config of all runs.
        data: cells by name.
        methods: objectives by name.
        recipes: other methods by name.
    """

    title: str
    seeds: Positive
    tuning: Tuning
    metric: Metric
    default: list[str]
    common: dict[str, Any]
    data: dict[str, CellConfig]
    methods: dict[str, MethodConfig]
    recipes: dict[str, RecipeConfig]
