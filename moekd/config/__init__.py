"""The config language: YAML files, validated against the registered classes.

`load_config` reads a file or shipped config into a raw mapping, `parse_recipe` turns it into a `RecipeConfig` or
reports every mistake at once, and `build` makes the objects that its `Spec`s describe.
"""

from .component import build, resolved, validate_component
from .load import load_config, shipped_ablations, shipped_configs
from .overrides import apply_changes, apply_overrides
from .parse import parse_recipe, parse_section, recipe_dict
from .reference import describe, reference_markdown
from .rooms import load_rooms
from .schema import (
    BaselineConfig,
    DataConfig,
    EvaluationConfig,
    MasksConfig,
    ModelConfig,
    MonitorConfig,
    ObjectiveConfig,
    PaperConfig,
    RecipeConfig,
    RouterConfig,
    StageConfig,
    TeacherConfig,
    TrainerConfig,
)
from .section import Section
from .spec import Spec
from .torch_optim import OPTIMIZERS, SCHEDULERS, build_optimizer, build_scheduler
from .yaml_file import parse_yaml, to_yaml

__all__ = [
    "OPTIMIZERS",
    "SCHEDULERS",
    "BaselineConfig",
    "DataConfig",
    "EvaluationConfig",
    "MasksConfig",
    "ModelConfig",
    "MonitorConfig",
    "ObjectiveConfig",
    "PaperConfig",
    "RecipeConfig",
    "RouterConfig",
    "Section",
    "Spec",
    "StageConfig",
    "TeacherConfig",
    "TrainerConfig",
    "apply_changes",
    "apply_overrides",
    "build",
    "build_optimizer",
    "build_scheduler",
    "describe",
    "load_config",
    "load_rooms",
    "parse_recipe",
    "parse_section",
    "parse_yaml",
    "recipe_dict",
    "reference_markdown",
    "resolved",
    "shipped_ablations",
    "shipped_configs",
    "to_yaml",
    "validate_component",
]
