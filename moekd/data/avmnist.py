"""`avmnist`: handwritten digits paired with spoken digits at the published shapes (28 x 28 image, 112 x 112 log-mel).

Prepared from MNIST, the Free Spoken Digit Dataset and ESC-10 noise (presets `easy`, `hard`, `asym_image`,
`asym_audio`), or from the original AV-MNIST arrays (Vielzeuf et al., CentralNet, ECCV Workshops 2018, arXiv 1808.07275;
preset `original`). Test pairs share no image, recording or noise with training pairs.

Shapes: N pairs, S samples of a wave.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DataError
from .arrays import ArrayField, ArraySplit, UnitScale
from .dataset import DATASETS, Dataset, FieldSpec, Ids, Split
from .log_mel import LogMel
from .speech import mu_law_decode
from .storage import cached_array, data_home, load_array, read_manifest

Preset = Literal["easy", "hard", "asym", "asym_image", "asym_audio", "original"]

SAMPLE_RATE = 8000
SAMPLES = 8064
SPECTROGRAM = LogMel(n_fft=1024, window=256, hop=72, mels=112, frames=112)
SNR_DB = (-15.0, -5.0)
COMPONENTS = 4
HARD_IMAGE = {"hard", "asym_audio"}
HARD_AUDIO = {"hard", "asym", "asym_image"}
ORIGINAL_SEED = 19980427
Count = Annotated[int, Ge(1)]


@DATASETS.register("avmnist")
class AVMNIST(Dataset):
    """Image-audio pairs of digits; run `moekd data prepare avmnist --source DIR` first.

    Splits: `train`, `val`, `test`. Fields: `image` `[1, 28, 28]` and `audio` `[1, 112, 112]` (log-mel), both in [0, 1].
    Noisy spectrograms are computed once for the pairs asked for (about 1.5 ms and 12.5 kB a pair) and kept as uint8 in
    `root/cache`.

    Args:
        preset: "easy" is clean; "hard" keeps 4 principal components of the image (28% of its energy) and mixes noise
            into the speech at -15 to -5 dB; "asym_image" (or "asym") is a clean image with noisy audio, "asym_audio"
            the reverse; "original" reads a folder prepared from the original AV-MNIST arrays.
        train: number of training pairs, drawn at random; None takes all.
        val: number of validation pairs; None takes all.
        test: number of test pairs; None takes all.
        root: folder of the prepared files; None is `$MOEKD_DATA_HOME/avmnist`, or `data/avmnist`.
        subset_seed: seed of the draw; a smaller subset is part of a larger one.
        group: for "original": which of the 20 published 60/20/20 permutation splits.

    Raises:
        DataError: not prepared, damaged, or the preset does not fit what was prepared.
    """

    kind = "avmnist"
    licence = "CC BY-SA 4.0"

    def __init__(
        self,
        preset: Preset = "hard",
        train: Count | None = None,
        val: Count | None = None,
        test: Count | None = None,
        root: str | None = None,
        subset_seed: int = 0,
        group: Annotated[int, Ge(0)] = 0,
    ) -> None:
        self.preset: Preset = "asym_image" if preset == "asym" else preset
        self.counts = {"train": train, "val": val, "test": test}
        self.root = Path(root) if root is not None else data_home() / "avmnist"
        self.subset_seed, self.group = subset_seed, group
        self.manifest = read_manifest(self.root, self.kind)
        if (self.preset == "original") != (self.manifest["format"] == "original"):
            raise DataError(
                f"{self.root} was prepared from {self.manifest['source']}: it gives "
                f"{'preset original only' if self.manifest['format'] == 'original' else 'every preset but original'}, "
                f"not '{preset}'"
            )
        self.class_names = [str(digit) for digit in range(10)]
        self.fields = {
            "image": FieldSpec((1, 28, 28), "float32", "image"),
            "audio": FieldSpec((1, 112, 112), "float32", "audio"),
        }

    def load_splits(self) -> dict[str, Split]:
        """Map the files, and compute the spectrograms that are not cached yet."""
        return self._original_splits() if self.preset == "original" else self._paired_splits()

    def identity(self) -> dict[str, Any]:
        """Return preset and checksums; the pairs chosen are in the sample ids."""
        return {"preset": self.preset, "files": {k: v["sha256"] for k, v in self.manifest["files"].items()}}

    @classmethod
    def prepare(cls, source: Path | None, output: Path | None, progress: bool = True, **options: Any) -> Path:
        """Prepare from a pack, the MNIST/FSDD/ESC files or the original arrays; see `avmnist_prepare`."""
        from .avmnist_prepare import prepare_avmnist

        return prepare_avmnist(source, output or data_home() / cls.kind, progress=progress, **options)

    def _subset(self, name: str, total: int) -> Ids:
        count = self.counts[name]
        if count is not None and count > total:
            raise DataError(f"avmnist: {name}: {count} pairs asked for, but there are {total}")
        return np.random.default_rng(self.subset_seed).permutation(total)[:count]

    def _paired_splits(self) -> dict[str, Split]:
        mixer = Mixer(self.root)
        splits: dict[str, Split] = {}
        offset = 0
        for name in self.counts:
            pairs = load_array(self.root / f"pairs_{name}.npy")
            rows = self._subset(name, len(pairs))
            images = load_array(self.root / f"image_{'test' if name == 'test' else 'train'}.npy")
            arrays = {
                "image": ArrayField(images, self.fields["image"], self._image_transform(), pairs["image"][rows]),
                "audio": self._audio(mixer, name, pairs[rows], len(pairs)),
            }
            table = {key: pairs[key][rows].tolist() for key in ("image", "audio", "noise")}
            splits[name] = ArraySplit(name, rows + offset, pairs["label"][rows], arrays, table, _PairName(name, table))
            offset += len(pairs)
        return splits

    def _image_transform(self) -> UnitScale | Reduce:
        if self.preset not in HARD_IMAGE:
            return UnitScale()
        mean, components = load_array(self.root / "pca_mean.npy"), load_array(self.root / "pca_components.npy")
        return Reduce(torch.from_numpy(np.array(mean)), torch.from_numpy(np.array(components[:COMPONENTS])))

    def _audio(self, mixer: Mixer, name: str, pairs: NDArray[Any], total: int) -> ArrayField:
        cache = self.root / "cache"
        spec = self.fields["audio"]
        if self.preset not in HARD_AUDIO:
            shape = (mixer.recordings, *spec.shape)
            clean = cached_array(cache / "clean.npy", shape, mixer.clean, "Spectrograms of the recordings")
            return ArrayField(clean, spec, UnitScale(), pairs["audio"].astype(np.int64))
        stem = f"noisy-{name}-{self.subset_seed}"
        counts = (int(path.stem.rsplit("-", 1)[1]) for path in cache.glob(f"{stem}-*.npy"))
        count = min((known for known in counts if len(pairs) <= known <= total), default=len(pairs))
        noisy = cached_array(
            cache / f"{stem}-{count}.npy",
            (count, *spec.shape),
            lambda rows: mixer.noisy(pairs[rows]),
            f"Spectrograms of {count} {name} pairs",
        )
        return ArrayField(noisy[: len(pairs)], spec, UnitScale())

    def _original_splits(self) -> dict[str, Split]:
        labels = np.array(load_array(self.root / "label.npy"), dtype=np.int64)
        total = len(labels)
        order = permutation_of_group(total, self.group)
        first, second = int(0.6 * total), int(0.8 * total)
        splits: dict[str, Split] = {}
        for name, part in zip(self.counts, (order[:first], order[first:second], order[second:]), strict=True):
            ids = part[np.sort(self._subset(name, len(part)))]
            arrays = {
                field: ArrayField(load_array(self.root / f"{field}.npy"), spec, UnitScale(), ids)
                for field, spec in self.fields.items()
            }
            splits[name] = ArraySplit(name, ids, labels[ids], arrays, {"row": ids.tolist()})
        return splits


@dataclass(frozen=True)
class Reduce:
    """uint8 images `[B, 1, 28, 28]` -> [0, 1], then projected on a few principal components of the training images."""

    mean: Tensor
    components: Tensor

    def __call__(self, values: NDArray[np.uint8]) -> Tensor:
        """Project a batch and clamp it to [0, 1]."""
        pixels = torch.from_numpy(values).flatten(1).to(torch.float32).div_(255)
        scores = (pixels - self.mean) @ self.components.T
        return (scores @ self.components + self.mean).clamp_(0, 1).view(values.shape)


class Mixer:
    """Speech and noise of a prepared folder -> spectrograms `[B, 1, 112, 112]` as uint8."""

    def __init__(self, root: Path) -> None:
        self.wave, self.offset = load_array(root / "wave.npy"), load_array(root / "wave_offset.npy")
        self.noise = load_array(root / "noise.npy")
        self.recordings = len(self.offset) - 1

    def clean(self, rows: slice) -> NDArray[np.uint8]:
        """Return spectrograms of recordings without noise."""
        return self._spectrograms(self._speech(np.arange(rows.start, rows.stop)))

    def noisy(self, pairs: NDArray[Any]) -> NDArray[np.uint8]:
        """Return spectrograms of pairs: speech + noise * 10^(-snr / 20), snr uniform in -15 to -5 dB."""
        noise = np.stack([self.noise[pair["noise"]][pair["noise_start"] :][:SAMPLES] for pair in pairs])
        snr = SNR_DB[0] + (SNR_DB[1] - SNR_DB[0]) * pairs["u"]
        gain = (10 ** (-snr / 20)).astype(np.float32)[:, None]
        return self._spectrograms(self._speech(pairs["audio"]) + gain * mu_law_decode(noise))

    def _speech(self, recordings: NDArray[Any]) -> NDArray[np.float32]:
        speech = np.zeros((len(recordings), SAMPLES), dtype=np.float32)
        for row, recording in enumerate(recordings):
            wave = self.wave[self.offset[recording] : self.offset[recording + 1]]
            speech[row, : len(wave)] = wave
        speech /= 32768
        return speech

    def _spectrograms(self, waves_BS: NDArray[np.float32]) -> NDArray[np.uint8]:
        scaled = SPECTROGRAM(torch.from_numpy(waves_BS), SAMPLE_RATE).mul_(255).round_()
        codes: NDArray[np.uint8] = scaled.to(torch.uint8).unsqueeze(1).numpy()
        return codes


class _PairName:
    """Human name of a pair; a class so that splits can be sent to worker processes."""

    def __init__(self, split: str, table: dict[str, list[int]]) -> None:
        self.split, self.table = split, table

    def __call__(self, row: int) -> str:
        image, audio = self.table["image"][row], self.table["audio"][row]
        return f"MNIST {'test' if self.split == 'test' else 'train'} image {image} with recording {audio}"


def permutation_of_group(total: int, group: int) -> Ids:
    """Return the published permutation `group_{group}`: the (group + 1)-th draw after seeding NumPy with 19980427."""
    state = np.random.RandomState(ORIGINAL_SEED)
    for _ in range(group):
        state.permutation(total)
    return state.permutation(total)
