"""A small HTTP service around an exported student, with one page to try it."""

from .settings import Settings, parse_bytes

__all__ = ["Settings", "parse_bytes"]
