"""`python -m moekd.benchmarks.vision_language_norm`: what normalising the targets of loud and quiet teachers is worth.

Three frozen teachers of very different scale teach a small student through their embeddings: features of a classifier
times 100, principal components, and random features times 0.1. The data are the pixels of the digits `mfeat`, or, with
`--data emoji`, 8 x 8 colours of emoji with their 9 groups, tested on unseen concepts. Measured is what a fresh linear
map finds of each teacher in the student's trunk, and of the classes, on test rows.

Shapes: N rows, D features.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..atomic import write_text
from ..data import Dataset
from ..data.emoji import Emoji
from ..data.mfeat import MultipleFeatures
from ..evaluation import accuracy, linear_map_r2, linear_probe, mean_interval, paired_difference
from ..model import Model
from ..objectives import EmbeddingKD, Objective, RoutedObjective, reduce
from ..routers import Drop, Router, Shapes
from ..routers.gates import MismatchGate
from ..signals import Signals
from ..step import Models, Step
from ..teachers import Teacher, TeacherPool
from ..teachers.normalize import Normalisation

NORMS: tuple[Normalisation, ...] = ("none", "zscore", "ema", "phi_s")
DROPS = (0.0, 0.5)
TEACHERS = ("classifier x100", "principal", "random x0.1")
MEASURES = (*TEACHERS, "worst", "accuracy")
STEPS, BATCH, WIDTH = 600, 128, 24


#: Numbers of one arm and seed.
Row = Mapping[str, str | float | int]


class Digits(NamedTuple):
    """Standardised pixels `[N, D]` and labels `[N]` of two splits."""

    train: Tensor
    labels: Tensor
    test: Tensor
    test_labels: Tensor


class Embeds(nn.Module):
    """Gives what a network says as the embedding `image`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pix_ND: Tensor) -> Signals:
        """Return the embedding of each row."""
        return Signals(embeddings={"image": self.network(pix_ND)})


class Scaled(nn.Module):
    """An affine map or network whose result is multiplied by a number."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x_ND: Tensor) -> Tensor:
        """Return the scaled result."""
        result: Tensor = self.network(x_ND)
        return self.factor * result


def digits() -> Digits:
    """Return the digits; run `moekd data prepare mfeat` first."""
    return Digits(*_read(MultipleFeatures(views=["pix"]), "pix"))


def emoji() -> Digits:
    """Return 8 x 8 colours of emoji, standardised by the training rows."""
    train, labels, test, test_labels = _read(Emoji(target="group", unseen_styles=[]), "image")
    train, test = (F.avg_pool2d(pictures, 4).flatten(1) for pictures in (train, test))
    mean, std = train.mean(dim=0), train.std(dim=0)
    return Digits((train - mean) / std, labels, (test - mean) / std, test_labels)


def _read(dataset: Dataset, field: str) -> list[Tensor]:
    found = []
    for name in ("train", "test"):
        split = dataset.splits[name]
        batch = split.__getitems__(list(range(len(split))))
        found += [batch[field], batch["label"]]
    return found


#: Loader and description of the data, by name.
DATA = {
    "mfeat": (digits, "the pixels of the\ndigits `mfeat`"),
    "emoji": (emoji, "8 x 8 colours of\nemoji (9 groups, unseen concepts)"),
}


def make_teachers(data: Digits, seed: int) -> TeacherPool:
    """Return the three teachers, drawn and trained from a seed."""
    torch.manual_seed(1000 + seed)
    features = data.train.shape[1]
    hidden, out = nn.Sequential(nn.Linear(features, 32), nn.ReLU()), nn.Linear(32, 10)
    classifier = nn.Sequential(hidden, out)
    optimizer = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(classifier(data.train), data.labels).backward()
        optimizer.step()
    principal = nn.Linear(features, 16, bias=False)
    rows = torch.linalg.svd(data.train - data.train.mean(dim=0), full_matrices=False).Vh[:16]
    principal.weight.data.copy_(rows)
    drawn = nn.Linear(features, 32)
    networks = (Scaled(hidden, 100.0), principal, Scaled(nn.Sequential(drawn, nn.Tanh()), 0.1))
    return TeacherPool(
        {
            name: Teacher(Embeds(network), ["pix"], name=key)
            for name, key, network in zip(("a", "b", "c"), ("a", "b", "c"), networks, strict=True)
        }
    )


def train_student(
    data: Digits, pool: TeacherPool, norm: Normalisation, drop: float, seed: int, steps: int = STEPS
) -> nn.Module:
    """Return a trunk of two layers that was trained to predict all teachers through linear heads."""
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(data.train.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
    widths = {"student": WIDTH, "a": 32, "b": 16, "c": 32}
    shapes = Shapes(embeddings={name: {"image": width} for name, width in widths.items()})
    heads = EmbeddingKD(distances={"mse": 1.0}, projection="linear", normalise=norm, shapes=shapes)
    objective: Objective = RoutedObjective(heads) if drop else heads
    router = Router(MismatchGate(on="losses"), Drop(drop, seed=seed), combine="loss", signal="none") if drop else None
    models = Models(Model(Embeds(trunk), ["pix"]), pool, router)
    optimizer = torch.optim.Adam([*trunk.parameters(), *objective.parameters()], lr=3e-3)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data.train), (BATCH,), generator=order)
        step = Step({"pix": data.train[rows], "id": rows}, models)
        optimizer.zero_grad()
        torch.stack([reduce(loss) for loss in objective(step).values()]).sum().backward()
        optimizer.step()
    return trunk


@torch.no_grad()
def measure(data: Digits, pool: TeacherPool, trunk: nn.Module) -> dict[str, float]:
    """Return R2 of a fresh linear map from the trunk to each teacher, the worst of them, and a probe's accuracy."""
    fit, test = trunk(data.train), trunk(data.test)
    splits = [{"pix": pixels, "id": torch.arange(len(pixels))} for pixels in (data.train, data.test)]
    said = [pool(split) for split in splits]
    found = {
        title: linear_map_r2(fit, said[0][name].embeddings["image"], test, said[1][name].embeddings["image"])
        for title, name in zip(TEACHERS, pool.names, strict=True)
    }
    with torch.enable_grad():
        probe = linear_probe(fit, data.labels, 10)
    return found | {"worst": min(found.values()), "accuracy": accuracy(probe(test), data.test_labels)}


def run(data: Digits, seeds: Sequence[int], steps: int = STEPS) -> Iterator[Row]:
    """Yield a row for each arm and seed."""
    for seed in seeds:
        pool = make_teachers(data, seed)
        for norm in NORMS:
            for drop in DROPS:
                trunk = train_student(data, pool, norm, drop, seed, steps)
                yield {"norm": norm, "drop": drop, "seed": seed, **measure(data, pool, trunk)}


def table(rows: Sequence[Row], command: str, data: str = "mfeat") -> str:
    """Return the results as a Markdown table, with intervals and differences paired by seed."""
    where, rest = DATA[data][1].split("\n")
    lines = [
        f"Made by `{command}`. Seeds: {', '.join(str(s) for s in dict.fromkeys(row['seed'] for row in rows))}.",
        "",
        "Three frozen teachers of very different scale (features of a classifier x 100, 16 principal components,",
        f"random features x 0.1) teach a trunk of two layers of 24 units through linear heads, on {where}",
        f"{rest}. R2 of a fresh linear map from the trunk to each teacher on test rows, and the accuracy of a",
        "linear probe: mean over seeds; 95 % interval of the worst teacher's R2 and of its difference to the first",
        "line, paired by seed.",
        "",
        "| normalise | drop | " + " | ".join(TEACHERS) + " | worst | difference | accuracy |",
        "|---|---|" + "---|" * (len(TEACHERS) + 3),
    ]
    by_arm: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        by_arm.setdefault((str(row["norm"]), float(row["drop"])), []).append(row)
    base = [float(row["worst"]) for row in next(iter(by_arm.values()))]
    for (norm, drop), mine in by_arm.items():
        values = {name: [float(row[name]) for row in mine] for name in MEASURES}
        worst, better = mean_interval(values["worst"]), paired_difference(values["worst"], base)
        cells = [norm, f"{drop:g}", *(f"{np.mean(values[name]):.3f}" for name in TEACHERS)]
        cells.append(f"{worst.mean:.3f}" + _limits(worst.low, worst.high, ".3f"))
        cells.append(
            "" if values["worst"] == base else f"{better.mean:+.3f}" + _limits(better.low, better.high, "+.3f")
        )
        cells.append(f"{np.mean(values['accuracy']):.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=cast(str, __doc__).splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of the table")
    parser.add_argument("--data", choices=list(DATA), default="mfeat", help="what the teachers and the student see")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = list(run(DATA[options.data][0](), range(options.seeds)))
    options.output.mkdir(parents=True, exist_ok=True)
    suffix, words = ("", "") if options.data == "mfeat" else (f"_{options.data}", f" --data {options.data}")
    name = f"vision_language_norm{suffix}"
    with open(options.output / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["norm", "drop", "seed", *MEASURES])
        writer.writeheader()
        writer.writerows({k: f"{v:.6f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    command = f"python -m moekd.benchmarks.vision_language_norm{words} --seeds {options.seeds}"
    text = table(rows, command, options.data)
    write_text(options.output / f"{name}.md", text)
    print(text)


def _limits(low: float | None, high: float | None, form: str) -> str:
    return "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"


if __name__ == "__main__":
    main()
