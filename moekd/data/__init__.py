"""Data sets as dict batches: registry, loaders in a reproducible order, few labels, policies for bad samples."""

from __future__ import annotations

from . import avmnist as _avmnist
from . import camvid as _camvid
from . import emoji as _emoji
from . import files as _files
from . import hub as _hub
from . import mfeat as _mfeat
from . import ravdess as _ravdess
from . import webdataset as _webdataset
from .corruption import Corruption, fingerprint_of, with_corruptions
from .dataset import DATASETS, Batch, Dataset, FieldSpec, Split
from .few_labels import labelled_mask, with_labels
from .loader import BatchPlan, make_loader
from .policies import BadSamples, with_policy
from .prepare import prepare
from .subset import labelled_part

__all__ = [
    "DATASETS",
    "BadSamples",
    "Batch",
    "BatchPlan",
    "Corruption",
    "Dataset",
    "FieldSpec",
    "Split",
    "fingerprint_of",
    "labelled_mask",
    "labelled_part",
    "make_loader",
    "prepare",
    "with_corruptions",
    "with_labels",
    "with_policy",
]
del _avmnist, _camvid, _emoji, _files, _hub, _mfeat, _ravdess, _webdataset
