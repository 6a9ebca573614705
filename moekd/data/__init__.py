"""Data sets as dict batches: registry, loaders in a reproducible order, few labels, policies for bad samples."""

from __future__ import annotations

from . import avmnist as _avmnist
from . import camvid as _camvid
from . import crisismmd as _crisismmd
from . import emoji as _emoji
from . import files as _files
from . import hub as _hub
from . import mfeat as _mfeat
from . import nyu_depth_v2 as _nyu_depth_v2
from . import ravdess as _ravdess
from . import ravdess_av as _ravdess_av
from . import vggsound50k as _vggsound50k
from . import webdataset as _webdataset
from .corruption import Corruption, fingerprint_of, with_corruptions
from .dataset import DATASETS, Batch, Dataset, FieldSpec, Split
from .episodes import Episodes, with_episodes
from .few_labels import labelled_mask, with_labels
from .loader import BatchPlan, make_loader
from .novel import novel_classes, with_novel_classes
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
    "Episodes",
    "FieldSpec",
    "Split",
    "fingerprint_of",
    "labelled_mask",
    "labelled_part",
    "make_loader",
    "novel_classes",
    "prepare",
    "with_corruptions",
    "with_episodes",
    "with_labels",
    "with_novel_classes",
    "with_policy",
]
del _avmnist, _camvid, _crisismmd, _emoji, _files, _hub, _mfeat, _nyu_depth_v2, _ravdess, _ravdess_av
del _vggsound50k, _webdataset
