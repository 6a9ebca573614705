"""From the section `evaluation` of a config to what is measured on embeddings."""

from __future__ import annotations

from ..config import EvaluationConfig
from ..data import Dataset
from ..errors import ConfigError, DataError
from .embedding_metrics import EmbeddingSettings, check_class_names
from .zero_shot import TEMPLATES

#: Field of a data set that says which rows show the same thing.
SAME = "concept"


def embedding_settings(config: EvaluationConfig, dataset: Dataset) -> EmbeddingSettings | None:
    """Return what is measured on embeddings; None if nothing is.

    Raises:
        ConfigError: a field that the data set does not have, or names that are not one a class.
    """
    if config.embeddings == "off":
        return None
    zero_shot, probe, retrieval = config.zero_shot, config.probe, config.retrieval
    same = SAME if SAME in dataset.fields else None
    if retrieval is not None and retrieval.same is not None:
        same = retrieval.same
        known = dataset.fields
        if same not in known or not known[same].dtype.startswith("int"):
            fields = ", ".join(name for name, spec in known.items() if spec.dtype.startswith("int")) or "none"
            raise ConfigError(f"evaluation.retrieval.same: '{same}' is no field of integers; such fields: {fields}")
    names = list((zero_shot.names if zero_shot else None) or dataset.class_names)
    settings = EmbeddingSettings(
        class_names=names,
        fields={name: vars(spec) | dataset.input_recipe(name) for name, spec in dataset.fields.items()},
        templates=None if zero_shot is None or not names else tuple(zero_shot.templates or TEMPLATES),
        retrieval=retrieval is not None,
        same=same,
        rank_agreement=None if retrieval is None else retrieval.rank_agreement,
        knn_k=None if probe is None else probe.knn_k,
        linear=probe is not None and probe.linear,
        teachers=probe is not None and probe.teachers,
        train_rows=4000 if probe is None else probe.train_rows,
        max_rows=config.max_rows,
    )
    try:
        check_class_names(settings, dataset.num_classes)
    except DataError as error:
        raise ConfigError(f"evaluation.zero_shot: {error}") from error
    return settings
