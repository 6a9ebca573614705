"""Signals of frozen teachers, computed once."""

from .memory import LogitCache, build_logit_cache
from .store import LogitStore
from .validity import MEMORY_LIMIT, why_not_cached

__all__ = ["MEMORY_LIMIT", "LogitCache", "LogitStore", "build_logit_cache", "why_not_cached"]
