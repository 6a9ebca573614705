"""A trained student for use elsewhere: its own folder, and the formats of other libraries."""

from .formats import FORMATS, export
from .hub import Upload, push
from .student import build_network, export_student, load_student, read_student

__all__ = [
    "FORMATS",
    "Upload",
    "build_network",
    "export",
    "export_student",
    "load_student",
    "push",
    "read_student",
]
