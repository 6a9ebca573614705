"""Faces out of films that are generated here, in the layout of RAVDESS; the face is that of a picture of matplotlib."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from matplotlib.cbook import get_sample_data
from PIL import Image

from moekd.data import prepare
from moekd.data.film_faces import FaceCutter, frame_numbers
from moekd.data.ravdess_av import RavdessAV
from moekd.errors import DataError, MissingDependencyError

HEIGHT, WIDTH = 240, 320


@pytest.fixture(scope="module")
def cv2():
    """Return OpenCV, in a version that has the detector."""
    module = pytest.importorskip("cv2", reason="OpenCV is not installed (extra moekd[films])")
    if not hasattr(module, "CascadeClassifier"):
        pytest.skip("OpenCV 5 has no cascades (extra moekd[films] is OpenCV 4)")
    return module


@pytest.fixture(scope="module")
def face():
    """Return a portrait `[240, 205, 3]` in the order blue, green, red."""
    with get_sample_data("grace_hopper.jpg") as file, Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((205, 240)))[:, :, ::-1]


def scene(face, left: int):
    """Return a picture of a blue room with the portrait in it."""
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    picture[:, :, 0] = 200
    picture[:, left : left + face.shape[1]] = face
    return picture


def write_film(cv2, path: Path, frames) -> Path:
    """Write a film of 30 frames a second."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 30, (WIDTH, HEIGHT))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame))
    writer.release()
    return path


def test_the_published_frames():
    assert frame_numbers(108) == [3, 10, 17, 24, 31, 39, 46, 53, 60, 67, 75, 82, 89, 96, 103]
    assert frame_numbers(115)[0] == 3 + 3
    assert frame_numbers(40)[:7] == [3, 10, 17, 24, 31, 39, 46], "short films begin at their begin"


def test_frames_are_counted_and_chosen(cv2, tmp_path):
    """A frame shows its number: eight stripes, black for 0 and white for 1."""
    bits = ((np.arange(120)[:, None] >> np.arange(8)) & 1).astype(np.uint8) * 255
    film = (np.broadcast_to(np.repeat(row, WIDTH // 8)[None, :, None], (HEIGHT, WIDTH, 3)) for row in bits)
    found = FaceCutter().frames(write_film(cv2, tmp_path / "film.mp4", film))
    middles = np.stack([frame[HEIGHT // 2, WIDTH // 16 :: WIDTH // 8, 1] for frame in found if frame is not None])
    assert ((middles > 127) @ (1 << np.arange(8))).tolist() == frame_numbers(120)


def test_the_face_is_cut_out_where_it_is(cv2, face, tmp_path):
    cutter = FaceCutter()
    still = cutter.box(scene(face, 0))
    assert still is not None
    x, y, width, height = still
    expected = cv2.resize(scene(face, 0)[y : y + height, x : x + width], (224, 224)).astype(float)
    film = write_film(cv2, tmp_path / "film.mp4", (scene(face, number) for number in range(108)))
    found = cutter(film)
    assert found.shape == (15, 224, 224, 3)
    assert found.dtype == np.uint8
    alike = [np.corrcoef(picture.ravel(), expected.ravel())[0, 1] for picture in found]
    assert min(alike) > 0.8, "boxes of moving pictures differ by some pixels"
    blue, red = found[..., 0].mean(), found[..., 2].mean()
    assert blue < 0.8 * red, "blue comes first, and skin is red"


def test_the_last_box_counts_where_the_face_is_hidden_and_missing_frames_are_black(cv2, face, tmp_path):
    hidden = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    frames = [hidden if number < 8 or number > 20 else scene(face, 40) for number in range(60)]
    found = FaceCutter()(write_film(cv2, tmp_path / "film.mp4", frames)).astype(float)
    spread = found.std(axis=(1, 2, 3))
    assert (spread[1:3] > 20).all(), "frames 10 and 17"
    assert (spread[[0, 3, 4, 5, 6]] < 10).all(), "the room where the face was"
    assert found[[0, 3, 4, 5, 6]].mean() == pytest.approx(90, abs=8)
    assert (found[9:] == 0).all(), "frames from 60 on are lacking"


def test_ravdess_av_from_films(cv2, face, tmp_path):
    for actor in range(1, 7):
        folder = tmp_path / "source" / f"Actor_{actor:02}"
        folder.mkdir(parents=True)
        clip = f"01-0{1 + actor % 8}-01-01-01-{actor:02}"
        if actor == 3:
            np.save(folder / f"01-{clip}_facecroppad.npy", np.full((15, 224, 224, 3), 77, dtype=np.uint8))
        write_film(cv2, folder / f"01-{clip}.mp4", (scene(face, 10 * actor) for _ in range(108)))
        (folder / f"02-{clip}.mp4").write_bytes(b"a film without sound is not read")
        soundfile.write(folder / f"03-{clip}.wav", 0.1 * np.sin(np.arange(48_000) / 10 / actor), 48_000)
    root = prepare("ravdess_av", tmp_path / "source", tmp_path / "out", progress=False)
    facts = json.loads((root / "manifest.json").read_text())
    assert facts["faces"]["films"] == 5
    assert facts["faces"]["opencv"] == cv2.__version__
    assert facts["actors"] == [1, 2, 3, 4, 5, 6]
    video = np.load(root / "video.npy")
    assert video.shape == (6, 15, 3, 224, 224)
    assert (video[2] == 77).all(), "a face that was cut out before is taken"
    assert (video[[0, 1, 3, 4, 5]].std(axis=(1, 2, 3, 4)) > 20).all()
    batch = RavdessAV(root=str(root)).splits["train"].__getitems__([0])
    assert batch["video"].shape == (1, 3, 15, 224, 224)


def test_films_that_are_no_films_or_show_nobody_are_named(cv2, tmp_path):
    cutter = FaceCutter()
    broken = tmp_path / "01-01-01-01-01-01-01.mp4"
    broken.write_bytes(b"no film" * 100)
    with pytest.raises(DataError, match=r"01-01-01-01-01-01-01.mp4 can't be decoded as a film"):
        cutter(broken)
    empty = write_film(cv2, tmp_path / "room.mp4", [np.full((HEIGHT, WIDTH, 3), 90, np.uint8)] * 30)
    with pytest.raises(DataError, match=r"room.mp4: no face in 4 frames; put the pictures .* room_facecroppad.npy"):
        cutter(empty)


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(MissingDependencyError, match=r"opencv-python-headless.*moekd\[films\]"):
        FaceCutter()
