"""Faces out of films: which frames, where the face is, and the picture of it. Needs OpenCV 4 (extra `moekd[films]`).

Frames, crops and sizes are those of the released preparation of MST-Distill (arXiv 2507.07015). The detector is another
one, since OpenCV ships it: the cascade of Viola and Jones ("Rapid Object Detection using a Boosted Cascade of Simple
Features", CVPR 2001) for frontal faces, where the released preparation uses MTCNN. Its boxes are square and reach less
far over chin and hair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, MissingDependencyError

Frame = NDArray[np.uint8]
Box = tuple[int, int, int, int]
CASCADE = "haarcascade_frontalface_default.xml"
#: Frames of 3.6 seconds at 30 a second, and how many of them are taken.
LENGTH, FRAMES, SIDE = 108, 15, 224
#: Pictures are searched at this height; faces lower than a share of it are no speaker's.
_SEARCHED, _SMALLEST = 360, 0.2


def frame_numbers(total: int, length: int = LENGTH, count: int = FRAMES) -> list[int]:
    """Return the frames that are taken from a film: `count` of them, evenly from the middle `length` frames.

    Numbers of a short film that are not below `total` are frames that it lacks.
    """
    skipped = max(0, (total - length) // 2)
    return [skipped + i * length // count + length // (2 * count) for i in range(count)]


class FaceCutter:
    """Cuts the face out of the frames of films.

    Raises:
        MissingDependencyError: OpenCV is not installed, or a version without the detector.
    """

    def __init__(self) -> None:
        self.cv2 = _opencv()
        self.detector = self.cv2.CascadeClassifier(str(Path(self.cv2.data.haarcascades) / CASCADE))

    def facts(self) -> dict[str, str]:
        """Return what faces were found with, for the manifest."""
        return {"detector": CASCADE, "opencv": str(self.cv2.__version__)}

    def __call__(self, film: Path) -> Frame:
        """Return the face in 15 frames, uint8 `[15, 224, 224, 3]`, channels in the order blue, green, red.

        Where no face is found, the box found last counts, or before the first one that one; frames that a short film
        lacks are black.

        Raises:
            DataError: it can't be decoded, or shows no face.
        """
        frames = self.frames(film)
        boxes = [None if frame is None else self.box(frame) for frame in frames]
        last = next((box for box in boxes if box is not None), None)
        if last is None:
            raise DataError(
                f"{film}: no face in {sum(frame is not None for frame in frames)} frames; put the pictures "
                f"{(FRAMES, SIDE, SIDE, 3)} beside it as {film.stem}_facecroppad.npy"
            )
        pictures = np.zeros((FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
        for picture, frame, box in zip(pictures, frames, boxes, strict=True):
            if frame is None:
                continue
            last = box or last
            x, y, width, height = last
            picture[:] = self.cv2.resize(frame[y : y + height, x : x + width], (SIDE, SIDE))
        return pictures

    def frames(self, film: Path) -> list[Frame | None]:
        """Return the chosen frames `[H, W, 3]` (blue, green, red); None for those that the film lacks.

        Raises:
            DataError: it can't be decoded.
        """
        total = self._run_through(film, ())[1]
        if not total:
            raise DataError(f"{film} can't be decoded as a film")
        numbers = frame_numbers(total)
        found = self._run_through(film, numbers)[0]
        return [found.get(number) for number in numbers]

    def box(self, frame: Frame) -> Box | None:
        """Return x, y, width and height of the largest face in a frame."""
        cv2 = self.cv2
        shrink = min(1.0, _SEARCHED / frame.shape[0])
        grey = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
        grey = cv2.resize(grey, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        side = int(_SMALLEST * grey.shape[0])
        boxes = self.detector.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=5, minSize=(side, side))
        if not len(boxes):
            return None
        x, y, width, height = (round(int(v) / shrink) for v in max(boxes, key=lambda box: int(box[2]) * int(box[3])))
        return x, y, width, height

    def _run_through(self, film: Path, numbers: Sequence[int]) -> tuple[dict[int, Frame], int]:
        """Return some frames by number, and how many frames could be decoded on the way.

        The number that a film states is often not the number of its frames, so they are counted.
        """
        capture = self.cv2.VideoCapture(str(film))
        found: dict[int, Frame] = {}
        total = 0
        try:
            while (not numbers or total <= max(numbers)) and capture.grab():
                if total in numbers:
                    ok, frame = capture.retrieve()
                    if not ok:
                        raise DataError(f"{film}: frame {total} can't be decoded")
                    found[total] = np.asarray(frame, dtype=np.uint8)
                total += 1
        finally:
            capture.release()
        return found, total


def _opencv() -> Any:
    purpose = "cutting faces out of films"
    try:
        import cv2
    except ImportError as error:
        raise MissingDependencyError("opencv-python-headless", "films", purpose) from error
    if not hasattr(cv2, "CascadeClassifier"):
        raise MissingDependencyError("opencv-python-headless<5", "films", f"{purpose} (found {cv2.__version__})")
    return cv2
