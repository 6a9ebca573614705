"""Signals of frozen teachers, computed once."""

from .codecs import Codec, Encoded, Like
from .memory import SignalCache, cache_in_memory
from .needs import Needs
from .settings import CacheSettings
from .store import SignalStore
from .table import Identity, Table
from .teacher_pass import TeacherPass
from .validity import why_not_cached

__all__ = [
    "CacheSettings",
    "Codec",
    "Encoded",
    "Identity",
    "Like",
    "Needs",
    "SignalCache",
    "SignalStore",
    "Table",
    "TeacherPass",
    "cache_in_memory",
    "why_not_cached",
]
