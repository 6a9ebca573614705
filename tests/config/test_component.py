"""Components: checking them against their class, building them, resolving their defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pytest
import torch
from annotated_types import Ge, Interval, Len
from pydantic import BaseModel, Field

from moekd.config import OPTIMIZERS, SCHEDULERS, Spec, build, build_optimizer, build_scheduler, resolved
from moekd.config import validate_component as validate
from moekd.errors import ConfigError
from moekd.registry import REGISTRIES, Injected, Registry

if TYPE_CHECKING:
    from decimal import Decimal


class Crop(BaseModel):
    size: Annotated[int, Field(ge=1)]
    flip: bool = False


class Everything:
    """One option of each type."""

    def __init__(
        self,
        count: Annotated[int, Ge(1)] = 1,
        share: Annotated[float, Interval(gt=0, le=1)] = 0.5,
        label: int | float | None = None,
        flag: bool = False,
        text: str = "a",
        choice: Literal["mean", "sum", 3] = "mean",
        pair: tuple[float, float] = (0.9, 0.999),
        sizes: Annotated[list[int], Len(1, 3)] = [1],  # noqa: B006
        table: dict[str, float] | None = None,
        folder: Path | None = None,
        crop: Crop | None = None,
        anything=None,
        device: torch.device | None = None,
        function: Callable[[float], float] | None = None,
    ) -> None:
        self.arguments = {name: value for name, value in locals().items() if name != "self"}


@pytest.fixture
def things():
    registry: Registry = Registry("thing", "test_things")
    registry.register("everything")(Everything)
    yield registry
    del REGISTRIES["test_things"]


def check(registry, value, where="x"):
    problems: list[str] = []
    spec = validate(registry, value, where, problems)
    assert (spec is None) == bool(problems)
    return spec, problems


@pytest.mark.parametrize(
    ("option", "value", "typed"),
    [
        ("count", 3, 3),
        ("share", 1, 1.0),
        ("label", 3, 3),
        ("label", 3.0, 3.0),
        ("label", None, None),
        ("choice", 3, 3),
        ("pair", [0.5, 1], (0.5, 1.0)),
        ("sizes", [4, 5], [4, 5]),
        ("table", {"a": 1}, {"a": 1.0}),
        ("folder", "a/b", Path("a/b")),
        ("crop", {"size": 2}, Crop(size=2)),
        ("anything", {"deep": [1, None]}, {"deep": [1, None]}),
        ("function", None, None),
    ],
)
def test_value_is_typed(things, option, value, typed):
    spec, problems = check(things, {"kind": "everything", option: value})
    assert problems == []
    assert spec.options == {option: typed}
    assert type(spec.options[option]) is type(typed)


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("count", 0, "x.count: expected an integer >= 1, found 0"),
        ("count", True, "x.count: expected an integer >= 1, found true"),
        ("count", 2.0, "x.count: expected an integer >= 1, found 2.0"),
        ("count", "2", "x.count: expected an integer >= 1, found '2' (text; remove the quotes)"),
        ("count", None, "x.count: expected an integer >= 1, found null"),
        ("share", 1.5, "x.share: expected a number > 0 and <= 1, found 1.5"),
        ("share", float("nan"), "x.share: expected a number > 0 and <= 1, found nan"),
        ("share", 10**400, "x.share: expected a number > 0 and <= 1, found a very large integer"),
        ("label", "many", "x.label: expected an integer, a number or null, found 'many' (text)"),
        ("flag", 1, "x.flag: expected true or false, found 1"),
        ("flag", "true", "x.flag: expected true or false, found 'true' (text; remove the quotes)"),
        ("text", 3, "x.text: expected text, found 3"),
        ("choice", "maen", "x.choice: expected 'mean', 'sum' or 3, found 'maen' (text); did you mean 'mean'?"),
        ("choice", 3.0, "x.choice: expected 'mean', 'sum' or 3, found 3.0"),
        ("pair", [0.9], "x.pair: expected a list of 2 (a number, a number), found a list with 1 items"),
        ("pair", [0.9, "b"], "x.pair[1]: expected a number, found 'b' (text)"),
        (
            "sizes",
            [],
            "x.sizes: expected a list (each item: an integer) of length >= 1 and of length <= 3,",
        ),
        ("sizes", [1, 2.5], "x.sizes[1]: expected an integer, found 2.5"),
        ("table", {"a": "b"}, "x.table.a: expected a number, found 'b' (text)"),
        ("table", {1: 2.0}, "x.table: key 1: expected text"),
        ("crop", {"size": 0}, "x.crop.size: expected an integer >= 1, found 0"),
        ("crop", {"sise": 2}, "x.crop.sise: unknown key; did you mean 'size'?"),
        ("crop", 3, "x.crop: expected a mapping or null, found 3"),
        ("device", "cpu", "x.device: expected null, found 'cpu' (text)"),
        ("function", "abs", "x.function: expected null, found 'abs' (text)"),
        ("cuont", 2, "x.cuont: unknown option of 'everything'; did you mean 'count'?"),
    ],
)
def test_wrong_value_is_one_line(things, option, value, reason):
    _, problems = check(things, {"kind": "everything", option: value})
    assert problems[0].startswith(reason)


def test_missing_nested_key_comes_with_the_unknown_one(things):
    _, problems = check(things, {"kind": "everything", "crop": {"sise": 2}})
    assert problems == [
        "x.crop.sise: unknown key; did you mean 'size'?",
        "x.crop.size: missing; expected an integer >= 1",
    ]


def test_bare_name_is_a_component_without_options(kit):
    assert check(kit["objectives"], "kd") == (Spec("kd"), [])


@pytest.mark.parametrize("kind", ["os.system", "../kd", "a\\b", "C:kd", "torch.nn:Linear"])
@pytest.mark.parametrize("form", [lambda kind: kind, lambda kind: {"kind": kind}])
def test_paths_are_no_kinds(kit, kind, form):
    """S2: dotted paths and file paths are no names of kinds."""
    _, problems = check(kit["objectives"], form(kind))
    assert len(problems) == 1
    assert problems[0].startswith("x.kind: ")
    assert "only registered names are allowed" in problems[0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"temperature": 1.0}, "x.kind: missing; known kit_objectives: cross_entropy, kd, routed, several"),
        ({"kind": "kdd"}, "x.kind: unknown objective 'kdd'; did you mean 'kd'?"),
        ({"kind": 3}, "x.kind: expected the name of an objective, found 3"),
        ({"kind": None}, "x.kind: expected the name of an objective, found null"),
        (3, "x: expected an objective ({kind: ...}), found 3"),
        ([], "x: expected an objective ({kind: ...}), found a list"),
        (None, "x: expected an objective ({kind: ...}), found null"),
        ({"kind": "kd", 3: 4}, "x: key 3 is not text; known: teacher, temperature"),
        ({"kind": "routed"}, "x.objective: missing; expected an objective"),
        ({"kind": "routed", "objective": "cross_entropy"}, "x.objective.kind: 'cross_entropy' does not fit here"),
    ],
)
def test_wrong_component(kit, value, reason):
    _, problems = check(kit["objectives"], value)
    assert [line[: len(reason)] for line in problems] == [reason]


def test_injected_parameters_are_no_options(kit):
    _, problems = check(kit["networks"], {"kind": "mlp", "num_classes": 3})
    assert problems == ["x.num_classes: unknown option of 'mlp'; known: widths, dropout"]


def test_nested_components_are_checked_with_their_paths(kit):
    value = {
        "kind": "routed",
        "objective": {"kind": "kd", "temperature": {"kind": "step_decay", "evry": 3}},
        "extras": ["cross_entropy", {"kind": "several", "ramps": {"a": {"kind": "step_decay", "every": 0}, "b": "no"}}],
    }
    _, problems = check(kit["objectives"], value)
    assert problems == [
        "x.objective.temperature.evry: unknown option of 'step_decay'; did you mean 'every'?",
        "x.extras[1].ramps.a.every: expected an integer >= 1, found 0",
        "x.extras[1].ramps.b.kind: unknown schedule 'no'; known: step_decay",
    ]


def test_build_makes_nested_components_first(kit):
    value = {
        "kind": "routed",
        "objective": {"kind": "kd", "temperature": {"kind": "step_decay", "every": 3}},
        "extras": ["cross_entropy", {"kind": "several", "ramps": {"a": "step_decay"}, "teachers": ["x"]}],
    }
    spec, _ = check(kit["objectives"], value)
    routed = build(spec, kit["objectives"])
    assert routed.objective.temperature.every == 3
    assert [type(extra).__name__ for extra in routed.extras] == ["CrossEntropy", "Several"]
    assert routed.extras[1].ramps["a"].start == 1.0
    assert routed.extras[1].teachers == ["x"]
    assert spec.to_dict() == value | {
        "extras": [
            {"kind": "cross_entropy"},
            {"kind": "several", "ramps": {"a": {"kind": "step_decay"}}, "teachers": ["x"]},
        ]
    }


def test_build_passes_the_context_that_is_asked_for(kit):
    spec = Spec("mlp", {"dropout": 0.1})
    assert build(spec, kit["networks"], num_classes=7, unused=1).num_classes == 7
    with pytest.raises(ConfigError, match=r"student: network 'mlp' needs 'num_classes', which is not supplied"):
        build(spec, kit["networks"], where="student")


def test_build_names_the_path_of_a_refusing_constructor(kit):
    spec = Spec("kd", {"temperature": Spec("step_decay", {"start": 13.0})})
    with pytest.raises(ConfigError, match=r"^a\.temperature: schedule 'step_decay': 13 is unlucky$"):
        build(spec, kit["objectives"], where="a")


def test_resolved_writes_all_defaults_out(kit, things):
    spec = resolved(Spec("kd", {"temperature": Spec("step_decay", {"every": 2})}), kit["objectives"])
    expected = {"kind": "step_decay", "start": 1.0, "every": 2}
    assert spec.to_dict() == {"kind": "kd", "teacher": None, "temperature": expected}
    full = resolved(Spec("everything"), things)
    assert full.to_dict()["pair"] == [0.9, 0.999]
    assert check(things, full.to_dict())[0] == resolved(full, things)


def test_classes_that_are_no_components(things):
    class Loose:
        def __init__(self, **options: int) -> None: ...

    class Demanding:
        def __init__(self, function: Callable[[], None]) -> None: ...

    class Hidden:
        def __init__(self, amount: Decimal) -> None: ...

    class Plain:
        pass

    class Network(torch.nn.Module):
        pass

    for cls in (Loose, Demanding, Hidden, Plain, Network):
        things.register(cls.__name__.lower())(cls)
    assert "takes **kwargs" in check(things, "loose")[1][0]
    assert "annotate it Injected" in check(things, "demanding")[1][0]
    assert "Decimal" in check(things, "hidden")[1][0]
    assert isinstance(build(Spec("plain"), things), Plain)
    assert isinstance(build(check(things, "network")[0], things), Network)


def test_injected_default_stands_in_for_absent_context(things):
    @things.register("lenient")
    class Lenient:
        def __init__(self, classes: Injected[int] = 5) -> None:
            self.classes = classes

    assert build(Spec("lenient"), things).classes == 5
    assert build(Spec("lenient"), things, classes=2).classes == 2


@pytest.mark.parametrize("kind", OPTIMIZERS.names())
def test_every_optimizer_is_built_from_its_defaults(kind):
    spec, problems = check(OPTIMIZERS, resolved(Spec(kind), OPTIMIZERS).to_dict())
    assert problems == []
    assert build_optimizer(spec, [torch.nn.Parameter(torch.zeros(2, 2))]).param_groups[0]["lr"] > 0


def test_schedulers_are_built_with_nested_ones():
    value = {
        "kind": "sequential_lr",
        "schedulers": [{"kind": "linear_lr", "total_iters": 2}, {"kind": "cosine_annealing_lr", "T_max": 10}],
        "milestones": [2],
    }
    spec, problems = check(SCHEDULERS, value)
    assert problems == []
    optimizer = build_optimizer(Spec("sgd", {"lr": 0.1}), [torch.nn.Parameter(torch.zeros(1))])
    scheduler = build_scheduler(spec, optimizer, steps=20)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert isinstance(scheduler, torch.optim.lr_scheduler.SequentialLR)
    assert 0.09 < optimizer.param_groups[0]["lr"] < 0.1


def test_length_of_a_schedule_is_the_stages_unless_given():
    def scheduler(kind, **options):
        optimizer = build_optimizer(Spec("sgd", {"lr": 0.1}), [torch.nn.Parameter(torch.zeros(1))])
        spec, problems = check(SCHEDULERS, {"kind": kind, **options})
        assert problems == []
        return build_scheduler(spec, optimizer, steps=40)

    assert scheduler("cosine_annealing_lr").T_max == 40
    assert scheduler("cosine_annealing_lr", T_max=7).T_max == 7
    assert scheduler("one_cycle_lr", max_lr=0.2).total_steps == 40
    assert scheduler("one_cycle_lr", max_lr=0.2, epochs=2, steps_per_epoch=3).total_steps == 6
    nested = scheduler("sequential_lr", schedulers=["linear_lr", "cosine_annealing_lr"], milestones=[5])
    assert nested._schedulers[1].T_max == 40
    with pytest.raises(ConfigError, match=r"scheduler: learning-rate scheduler 'one_cycle_lr'"):
        scheduler("one_cycle_lr", max_lr=0.1, pct_start=2.0)


def test_optimizer_options_are_torchs():
    assert check(OPTIMIZERS, {"kind": "adamw", "lr": 1e-3, "betas": [0.9, 0.99]})[1] == []
    _, problems = check(OPTIMIZERS, {"kind": "sgd", "momentun": 0.9, "lr": "fast", "params": []})
    assert problems == [
        "x.momentun: unknown option of 'sgd'; did you mean 'momentum'?",
        "x.lr: expected a number, found 'fast' (text)",
        problems[2],
    ]
    assert problems[2].startswith("x.params: unknown option of 'sgd'")
    assert check(SCHEDULERS, "lambda_lr")[1][0].startswith("x.kind: unknown learning-rate scheduler 'lambda_lr'")
