"""Read files and bytes as the field that a student takes.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..data.fields.image import ImageField
from ..errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".npy")
#: What is decoded when the sender is not trusted; other decoders of Pillow stay off.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MAX_PIXELS = 100_000_000
_BROKEN = (
    OSError,
    UnidentifiedImageError,
    ValueError,
    SyntaxError,
    Image.DecompressionBombError,
    struct.error,
    LookupError,
    TypeError,
    OverflowError,
    EOFError,
)


def picture_files(paths: Iterable[Path | str]) -> list[Path]:
    """Return the files; a folder stands for all pictures and arrays in it and below, sorted by path.

    Raises:
        DataError: a path that is not there, or a folder without a picture.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not inside:
                raise DataError(f"no picture in the folder {path}; expected files ending in {', '.join(SUFFIXES)}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"no file {path}")
    return found


def read_input(path: Path, field: Mapping[str, Any]) -> Tensor:
    """Read one file as the field that a student takes, without a batch axis.

    Args:
        path: picture or `.npy` file.
        field: "modality", "shape", "dtype" and how pictures are prepared ("mean", "std", "resize").

    Raises:
        DataError: the file is not there, can't be read, or does not fit the field.
    """
    if not path.is_file():
        raise DataError(f"no file {path}")
    if path.suffix == ".npy":
        return _array(path, field)
    if not takes_pictures(field):
        shape = tuple(field["shape"])
        raise DataError(f"{path}: the student reads {field['modality']}; give a .npy file of shape {shape}")
    try:
        return read_picture(path.read_bytes(), field)
    except (DataError, OSError) as error:
        raise DataError(f"{path} is no readable picture: {error}") from error


def takes_pictures(field: Mapping[str, Any]) -> bool:
    """Tell whether a field holds pictures with one or three channels."""
    shape = tuple(field["shape"])
    return field["modality"] == "image" and len(shape) == 3 and shape[0] in (1, 3)


def read_picture(
    content: bytes,
    field: Mapping[str, Any],
    max_pixels: int = MAX_PIXELS,
    formats: tuple[str, ...] | None = None,
) -> Tensor:
    """Read an encoded picture as a student's field `[C, H, W]`; messages name neither a file nor a place in memory.

    The size is checked before any pixel is decoded.

    Args:
        content: the bytes of a file.
        field: "shape" and how pictures are prepared ("mean", "std", "resize").
        max_pixels: largest width * height.
        formats: Pillow's names of the formats that are allowed; None: all that it knows.

    Raises:
        DataError: no picture, one that is cut off or damaged, or too many pixels.
    """
    shape = tuple(field["shape"])
    reader = ImageField(
        size=(shape[1], shape[2]),
        color="rgb" if shape[0] == 3 else "grey",
        resize=field.get("resize", "stretch"),
        mean=field.get("mean") or None,
        std=field.get("std") or None,
    )
    _check_header(content, max_pixels, formats)
    try:
        pixels = reader.decode({"bytes": content, "path": "the picture"}, Path())
    except (DataError, *_BROKEN) as error:
        raise DataError("the picture is damaged or cut off") from error
    return reader.transform("image", pixels[None])["image"][0]


def _check_header(content: bytes, max_pixels: int, formats: tuple[str, ...] | None) -> None:
    expected = "a picture" if formats is None else f"a picture ({', '.join(formats)})"
    try:
        with Image.open(io.BytesIO(content), formats=formats) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise DataError(f"the picture has too many pixels: expected at most {max_pixels:,}") from error
    except _BROKEN as error:
        found = f"{len(content)} bytes of something else" if content else "an empty file"
        raise DataError(f"expected {expected}, found {found}") from error
    if width * height > max_pixels:
        raise DataError(
            f"the picture has too many pixels: expected at most {max_pixels:,}, found {width} x {height} = "
            f"{width * height:,}"
        )


def _array(path: Path, field: Mapping[str, Any]) -> Tensor:
    """Read a `.npy` file of the field's shape and type."""
    shape, dtype = tuple(field["shape"]), getattr(torch, field.get("dtype", "float32"))
    try:
        value = torch.from_numpy(np.load(path, allow_pickle=False))
    except (ValueError, OSError, TypeError, EOFError, BadZipFile) as error:
        raise DataError(f"{path} is no readable array: {error}") from error
    if tuple(value.shape) != shape:
        raise DataError(f"{path} holds an array of shape {tuple(value.shape)}; the student takes {shape}")
    if value.is_complex() or (value.is_floating_point() and not dtype.is_floating_point):
        found = str(value.dtype).removeprefix("torch.")
        raise DataError(f"{path} holds numbers of type {found}; the student takes {str(dtype).removeprefix('torch.')}")
    if not bool(torch.isfinite(value).all()):
        raise DataError(f"{path} holds NaN or infinite values")
    return value.to(dtype)
