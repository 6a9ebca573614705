"""Fields of the user's own data: how the value of a column becomes a tensor; one kind a file."""

from __future__ import annotations

from . import audio as _audio
from . import image as _image
from . import text as _text
from . import vector as _vector
from .field import FIELDS, Field

__all__ = ["FIELDS", "Field"]
del _audio, _image, _text, _vector
