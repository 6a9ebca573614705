"""Signals of frozen teachers, computed once."""

from .memory import LogitCache, build_logit_cache
from .store import LogitStore
from .validity import why_not_cached

__all__ = ["LogitCache", "LogitStore", "build_logit_cache", "why_not_cached"]
