"""The baseline of the performance benchmark: the three stages of MST-Distill as its released code runs them.

Written from a description of that code (arXiv 2507.07015), with its costs: every teacher runs in full for every mask,
with autograd on; masks are put in by hooks that stay until the end of the step; attention maps are computed and
dropped; all outputs are stacked before the chosen ones are gathered. What it computes is not changed.

Shapes: B batch, C classes, M specialised teachers, D features or channels, h hidden size of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise, permutations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

TEMPERATURE = 4.0


class AttentionMask(nn.Module):
    """Weights in (0, 1) for the features `[B, D]` or channels `[B, D, H, W]` of a layer, multiplied with it."""

    def __init__(self, dim: int, spatial: bool = False, factor: int = 2, heads: int = 3) -> None:
        super().__init__()
        hidden = dim // (factor * heads) * heads
        self.dim, self.hidden = dim, hidden
        self.reduce: nn.Module = nn.Identity()
        if spatial:
            depthwise = nn.Conv2d(dim, dim, 3, stride=2, padding=1, groups=dim, bias=False)
            pointwise = nn.Conv2d(dim, dim, 1, bias=False)
            self.reduce = nn.Sequential(
                depthwise, pointwise, nn.BatchNorm2d(dim), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
            )
        self.embed = nn.Linear(dim, hidden * dim)
        self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.score = nn.Linear(hidden, 1)

    def forward(self, activation: Tensor) -> Tensor:
        """Return the masked activation."""
        tokens = self.embed(self.reduce(activation)).view(-1, self.dim, self.hidden)
        attended, _ = self.attention(tokens, tokens, tokens)
        mask = torch.sigmoid(self.score(attended).squeeze(-1))
        return activation * mask.reshape(*mask.shape, *[1] * (activation.dim() - 2))


class Audio(nn.Module):
    """ThreeLayerCNN-A of AV-MNIST."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 32), (32, 64), (64, 128)))
        self.fc1 = nn.Linear(128 * 14 * 14, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]` of spectrograms `[B, 1, 112, 112]`."""
        for convolution in (self.conv1, self.conv2, self.conv3):
            x = F.max_pool2d(F.relu(convolution(x)), 2)
        logits: Tensor = self.fc1(x.flatten(1))
        return logits


class Image(nn.Module):
    """LeNet5 of AV-MNIST, with or without its last layer."""

    def __init__(self, classifies: bool = True) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)
        self.fc1, self.fc2 = nn.Linear(120, 84), nn.Linear(84, 10) if classifies else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[B, 10]`, or features `[B, 84]`, of pictures `[B, 1, 28, 28]`."""
        x = F.avg_pool2d(F.relu(self.conv1(x)), 2)
        x = F.avg_pool2d(F.relu(self.conv2(x)), 2)
        out: Tensor = self.fc2(F.relu(self.fc1(F.relu(self.conv3(x)).flatten(1))))
        return out


class Fusion(nn.Module):
    """CNN-I of AV-MNIST."""

    def __init__(self) -> None:
        super().__init__()
        self.image = Image(classifies=False)
        widths = (1, 32, 64, 128, 256, 512)
        self.audio = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.concat_identity, self.fc1, self.fc2 = nn.Identity(), nn.Linear(596, 298), nn.Linear(298, 10)

    def forward(self, image: Tensor, audio: Tensor) -> Tensor:
        """Return logits `[B, 10]` of a picture `[B, 1, 28, 28]` and a spectrogram `[B, 1, 112, 112]`."""
        for index, convolution in enumerate(self.audio):
            audio = F.relu(convolution(audio))
            audio = F.max_pool2d(audio, 2) if index < 4 else audio.mean(dim=(2, 3))
        logits: Tensor = self.fc2(self.fc1(self.concat_identity(torch.cat([self.image(image), audio], dim=1))))
        return logits


@dataclass
class PlainTeacher:
    """A teacher, the fields it reads, and its masks by the names of the modules behind which they act."""

    network: nn.Module
    inputs: Sequence[str]
    masks: Mapping[str, nn.Module]

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        return self.network(*[batch[name].clone() for name in self.inputs])

    def hook(self, tap: str) -> Any:
        """Put a mask in."""
        mask = self.masks[tap]

        def masked(module: nn.Module, args: Any, output: Tensor) -> Any:
            return mask(output)

        return self.network.get_submodule(tap).register_forward_hook(masked)


class Rows(Dataset[dict[str, Tensor]]):
    """Samples one by one, as dicts of tensors."""

    def __init__(self, fields: Mapping[str, Tensor]) -> None:
        self.fields = fields

    def __len__(self) -> int:
        return len(self.fields["label"])

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {name: values[row] for name, values in self.fields.items()}


@dataclass
class PlainLoop:
    """The stages, a batch at a time.

    Attributes:
        student: reads the first field of the data that `reads` names.
        reads: fields of the student.
        teachers: with their masks.
        classes: C.
        device: where everything is.
        lr: learning rate of all optimizers.
        autocast: makes the context of forwards.
    """

    student: nn.Module
    reads: Sequence[str]
    teachers: Sequence[PlainTeacher]
    classes: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    lr: float = 1e-4
    autocast: Any = nullcontext

    def __post_init__(self) -> None:
        self.masks = [mask for teacher in self.teachers for mask in teacher.masks.values()]
        self.gate = nn.Sequential(
            nn.Linear(self.classes, 2 * self.classes), nn.Linear(2 * self.classes, len(self.masks))
        )
        networks = [teacher.network for teacher in self.teachers]
        for module in (self.student, self.gate, *networks, *self.masks):
            module.to(self.device)

        def adam(*modules: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.Adam([p for module in modules for p in module.parameters()], lr=self.lr)

        self.together = adam(self.student, *networks)
        self.for_masks = [adam(mask) for mask in self.masks]
        self.for_student = adam(self.student, self.gate)
        self.counts = torch.zeros(max(1, len(self.masks)), dtype=torch.long)

    def epoch(self, stage: str, data: Rows, batch_size: int) -> int:
        """Run a stage ("cotrain", "specialise", "distill", "alone") over the data once; return the number of steps."""
        steps = 0
        for batch in self.batches(data, batch_size):
            getattr(self, stage)(batch)
            steps += 1
        return steps

    def batches(self, data: Rows, batch_size: int) -> Iterator[dict[str, Tensor]]:
        """Yield shuffled batches on the device."""
        for batch in DataLoader(data, batch_size, shuffle=True):
            yield {name: value.to(self.device) for name, value in batch.items()}

    def says(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the student's logits."""
        return self.student(*[batch[name] for name in self.reads])

    def cotrain(self, batch: Mapping[str, Tensor]) -> None:
        """Stage 1: all learn from the labels and from one another."""
        self._modes(student=True, teachers=True, masks=False)
        with self.context():
            logits = [self.says(batch), *[teacher(batch) for teacher in self.teachers]]
            loss = torch.stack([F.cross_entropy(one, batch["label"]) for one in logits]).sum()
            for learner, target in permutations(logits, 2):
                loss = loss + distance(learner, target)
        self._step(loss, self.together)

    def specialise(self, batch: Mapping[str, Tensor]) -> None:
        """Stage 2: one mask after the other learns to bring its teacher to the student."""
        self._modes(student=False, teachers=False, masks=True)
        with self.context():
            target = self.says(batch)
        optimizers = iter(self.for_masks)
        for teacher in self.teachers:
            for tap in teacher.masks:
                handle = teacher.hook(tap)
                with self.context():
                    loss = distance(teacher(batch), target.detach())
                handle.remove()
                self._step(loss, next(optimizers))
                loss.item()

    def distill(self, batch: Mapping[str, Tensor]) -> None:
        """Stage 3: the student learns from the labels and from the teachers that the gate chooses."""
        self._modes(student=True, teachers=False, masks=False)
        with self.context():
            student, outputs, handles = self.says(batch), [], []
            for teacher in self.teachers:
                for tap in teacher.masks:
                    handles.append(teacher.hook(tap))
                    outputs.append(teacher(batch))
            for handle in handles:
                handle.remove()
            probs_BM = self.gate(student).softmax(dim=1)
            chosen_B1 = probs_BM.topk(1, dim=1).indices
            stacked_BMC = torch.stack(outputs, dim=1)
            teacher_BC = stacked_BMC.gather(1, chosen_B1[:, :, None].expand(-1, -1, self.classes))[:, 0]
            task = F.cross_entropy(student, batch["label"])
            transfer = distance(student, teacher_BC.detach())
            uniform = torch.full_like(probs_BM[0], 1 / probs_BM.shape[1])
            balance = F.kl_div(probs_BM.mean(dim=0).log(), uniform, reduction="sum") / len(uniform)
        self._step(task + transfer + balance, self.for_student)
        logged = [task, transfer, balance, *(F.cross_entropy(one, batch["label"]) for one in outputs)]
        self.seen = [value.item() for value in logged]
        self.counts += torch.bincount(chosen_B1.flatten(), minlength=len(self.counts)).cpu()

    def alone(self, batch: Mapping[str, Tensor]) -> None:
        """The student learns from the labels only."""
        with self.context():
            loss = F.cross_entropy(self.says(batch), batch["label"])
        self._step(loss, self.for_student)

    def context(self) -> AbstractContextManager[Any]:
        """Return the precision of forwards."""
        return self.autocast()

    def _modes(self, student: bool, teachers: bool, masks: bool) -> None:
        self.student.train(student)
        for teacher in self.teachers:
            teacher.network.train(teachers)
        for mask in self.masks:
            mask.train(masks)

    @staticmethod
    def _step(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def distance(learner_BC: Tensor, target_BC: Tensor) -> Tensor:
    """Return `T^2 KL(softmax(target / T) || softmax(learner / T))`, the mean over the batch."""
    learner = F.log_softmax(learner_BC.float() / TEMPERATURE, dim=1)
    target = F.softmax(target_BC.float() / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(learner, target, reduction="batchmean")


def published_teachers() -> list[PlainTeacher]:
    """Return the teachers of an image student of AV-MNIST, with the published masks."""
    fusion = {"concat_identity": AttentionMask(596), "fc1": AttentionMask(298)}
    audio = {"conv2": AttentionMask(64, spatial=True), "conv3": AttentionMask(128, spatial=True)}
    return [PlainTeacher(Fusion(), ["image", "audio"], fusion), PlainTeacher(Audio(), ["audio"], audio)]
