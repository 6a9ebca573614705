"""The fixed parts of a config. Where a field is a `Spec`, the config has a component of the named registry."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from .annotations import Component, Inline, Means
from .section import ArxivId, Name, Place, Positive, Section, SnakeCase, Tracker, Trained, WeightsFile
from .spec import Spec


class PaperConfig(Section):
    """The publication that a config reproduces.

    Attributes:
        title: its title.
        arxiv: its arXiv id.
        year: year of publication.
        must_beat: name of the baseline that it is expected to beat.
    """

    title: str
    arxiv: ArxivId | None = None
    year: Annotated[int, Ge(1950), Le(2100)] | None = None
    must_beat: str | None = None


class CorruptionConfig(Section):
    """What happens to one field of some rows, the same in every epoch; the batch field `corrupted_FIELD` says to which.

    Attributes:
        field: the field.
        kind: `noise`: normal noise is added; `missing`: it becomes 0; `swapped`: it is another row's.
        fraction: share of the rows.
        severity: of the noise, in standard deviations of the field.
        splits: which splits; all by default.
    """

    field: Annotated[str, MinLen(1)]
    kind: Literal["noise", "missing", "swapped"]
    fraction: Annotated[float, Ge(0), Le(1)]
    severity: Annotated[float, Ge(0)] = 1.0
    splits: list[str] | None = None


class NovelConfig(Section):
    """Classes that are tested and not learned: base-to-novel generalisation. Each test split gets the parts
    `<split>_base` and `<split>_novel`, each with its own classes as the only candidates.

    Attributes:
        classes: names of the novel classes, or the fraction of all classes that are drawn.
        training: what training sees of them: `nothing`, or their rows with `no_labels`. The split `train_all` has all
            rows, for models that stand for ones trained elsewhere.
        seed: seed of the draw.
    """

    classes: Annotated[float, Gt(0), Lt(1)] | Annotated[list[str], MinLen(1)]
    training: Literal["nothing", "no_labels"] = "nothing"
    seed: Annotated[int, Ge(0)] = 0


class EpisodesConfig(Section):
    """Few-shot episodes of labelled training rows: a stage with `split: episodes` has one of them as each batch.

    Attributes:
        ways: classes of an episode.
        shots: examples of a class, which stand in front of its queries.
        queries: further rows of a class.
        per_epoch: episodes of an epoch.
    """

    ways: Annotated[int, Ge(2)]
    shots: Positive = 1
    queries: Positive = 15
    per_epoch: Positive = 100


class DataConfig(Section):
    """The data set (`kind` and its options) and how it is read.

    Attributes:
        spec: the data set.
        batch_size: rows of a batch, over all processes.
        labels: how many training rows keep their label: a count (whole number) or a fraction (0.1); all without it. The
            other rows take part in distillation and not in cross-entropy.
        labelled_share: share of rows with a label in every training batch, for few `labels`: an epoch shows each of the
            other rows once, and labelled rows as often as that takes. Without it rows are drawn alike.
        episodes: how the split `episodes` is drawn from the training rows that have a label.
        novel: classes that are tested and not learned.
        corruptions: fields of some rows are made unreliable, to study what a router makes of it.
        num_workers: processes that read batches.
        worker_timeout: seconds in which such a process has to give its next batch; after them the run stops.
        on_bad_sample: what a sample that can't be read leads to.
        max_bad_fraction: share of bad samples above which the run stops.
    """

    spec: Annotated[Spec, Inline("datasets")]
    batch_size: Positive = 128
    labels: Positive | Annotated[float, Gt(0), Le(1)] | None = None
    labelled_share: Annotated[float, Gt(0), Lt(1)] | None = None
    episodes: EpisodesConfig | None = None
    novel: NovelConfig | None = None
    corruptions: list[CorruptionConfig] = []
    num_workers: Annotated[int, Ge(0)] = 0
    worker_timeout: Annotated[float, Gt(0)] = 300.0
    on_bad_sample: Literal["raise", "skip", "substitute"] = "raise"
    max_bad_fraction: Annotated[float, Ge(0), Le(1)] = 0.01


class ModelConfig(Section):
    """A network (`kind` and its options) and what it reads and shows.

    Attributes:
        spec: the network.
        inputs: batch fields that it reads, in the order of its call.
        taps: paths of the modules whose outputs are features, such as "fc1" or "visual.blocks.5".
        weights: file with its trained weights.
        dtype: type of its weights and activations.
        licence: under which its weights are given away, as the model card tells it ("apache-2.0").
    """

    spec: Annotated[Spec, Inline("networks")]
    inputs: Annotated[list[str], MinLen(1)]
    taps: list[Annotated[str, MinLen(1), Means("the path of a module")]] = []
    weights: WeightsFile | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    licence: str | None = None


class FollowConfig(Section):
    """A teacher that is the moving average of the student (the momentum teacher of momentum distillation).

    Attributes:
        momentum: share of its weights that stays at each step; a run of a few hundred steps wants 0.99.
        buffers: whether it takes the student's buffers (statistics of batch normalisation) or keeps the first ones.
    """

    momentum: Annotated[float, Ge(0), Lt(1)] = 0.995
    buffers: Literal["copy", "keep"] = "copy"


class TeacherConfig(ModelConfig):
    """A teacher: a network (`kind` and its options), what it reads and shows, and where and how it runs.

    Attributes:
        follows: its weights follow the student's. Without a `kind`, it takes over the keys of `student`. It starts
            again as a copy of the student at every stage that trains the student and reads it.
        device: where its weights are: with the student (`auto`), on a device of its own (`cpu`, `cuda:1`), or in main
            memory and brought to the student's device for each forward (`rotated`), so that teachers take the memory
            of the largest of them.
        compile: run it through `torch.compile` where it is frozen and nothing is tapped.
        pad_rows: fill up the rows that a router sends to it to one of a few batch sizes, as `compile` does too.
    """

    follows: FollowConfig | None = None
    device: Place = "auto"
    compile: bool = False
    pad_rows: bool = False


class MasksConfig(Section):
    """The mask (`kind` and its options) that each tap of each teacher gets, and how masks of one teacher meet.

    Attributes:
        spec: the mask.
        stacking: `independent`: a variant has its own mask only; `cumulative`: also those of the earlier taps of its
            teacher, as in the released code of MST-Distill.
    """

    spec: Annotated[Spec, Inline("masks")]
    stacking: Literal["independent", "cumulative"] = "independent"


class RouterConfig(Section):
    """Which teachers an instance learns from.

    Attributes:
        gate: what scores the teachers.
        selection: how scores become chosen teachers.
        balance: auxiliary losses on the routing.
        combine: how the chosen teachers' weights are used: `select` (uniform), `loss` (they multiply the losses) or
            `target` (one loss against the mixed distribution).
        signal: where the gate's gradient comes from; by default what follows from `combine`.
        mix: what `target`, and the signal `task`, mix.
        experts: teachers ("audio") and masked variants ("audio/fc1") to choose among; by default all variants, or all
            teachers where there are no masks.
        oracle_tau: temperature of soft targets of the signal `oracle`; hard ones without it.
    """

    gate: Annotated[Spec, Component("gates")]
    selection: Annotated[Spec, Component("selections")] = Spec("top_k")
    balance: list[Annotated[Spec, Component("balances")]] = []
    combine: Literal["select", "loss", "target"] = "select"
    signal: Literal["aux_only", "kd", "task", "oracle", "bilevel", "policy", "none"] | None = None
    mix: Literal["probs", "logits", "logmeanexp", "confidence"] = "probs"
    experts: Annotated[list[str], MinLen(1)] | None = None
    oracle_tau: Annotated[float, Gt(0)] | None = None


class ObjectiveConfig(Section):
    """An objective (`kind` and its options), its weight and its name.

    Attributes:
        spec: the objective.
        weight: factor of its losses: a number or a schedule.
        name: its name in logs; its kind by default. Needed when a stage has two of one kind.
    """

    spec: Annotated[Spec, Inline("objectives")]
    weight: float | Annotated[Spec, Component("schedules")] = 1.0
    name: SnakeCase | None = None

    @property
    def label(self) -> str:
        """The name in logs."""
        return self.name or self.spec.kind


class MonitorConfig(Section):
    """The validation metric that chooses the best epoch.

    Attributes:
        metric: its name, such as "accuracy" or "loss".
        mode: whether larger (`max`) or smaller (`min`) is better.
        split: split that it is measured on.
    """

    metric: str
    mode: Literal["min", "max"]
    split: str = "val"


class StageConfig(Section):
    """One stage of training; `kind` is `train` unless given, and a kind may have options of its own.

    Attributes:
        spec: kind of the stage and its own options.
        name: name in logs, unique in its list.
        trains: modules whose parameters are updated; all others are frozen. A path behind a model's name
            (`student.model.image`, `teachers.clip.zero_shot`) trains that part of its network alone; the rest of the
            model stays in eval mode.
        objectives: the losses.
        transforms: what is done to a batch first.
        optimizer: any optimizer of `torch.optim`, by lower-case name, with its options.
        scheduler: any scheduler of `torch.optim.lr_scheduler`, in snake_case, with its options.
        epochs: passes over the training split; either this or `steps`.
        steps: optimizer steps.
        monitor: metric that chooses the epoch whose weights are kept; without it the last.
        patience: epochs without a better metric after which the stage ends.
        clip_norm: largest norm of the gradient.
        accumulate: batches whose gradients are added up before a step.
        micro_batch: rows of a forward of student and frozen teachers, in one process, while the losses see the whole
            batch: the student runs again in the backward pass, so that large contrastive batches fit in memory. Not
            with batch normalisation in the student.
        ema: decay of an exponential moving average of the student's weights.
        cache: where the signals of frozen teachers are kept: `auto` decides, `memory` or `disk` insist on it; with
            `off` the teachers run in every step.
        split: what the stage trains on: `train`; `labelled`, the rows of it that have a label; `episodes` of
            those, see `data.episodes`; or `val`, so that a router is fitted on held-out labels. Never a test split.
        enabled: false leaves the stage out, so that a config that extends this one or an arm of an ablation can switch
            it on.
    """

    spec: Annotated[Spec, Inline("stages", default="train")]
    name: SnakeCase
    trains: list[Trained] = []
    objectives: list[ObjectiveConfig] = []
    transforms: list[Annotated[Spec, Component("transforms")]] = []
    optimizer: Annotated[Spec, Component("optimizers")] = Spec("adam", {"lr": 1e-3})
    scheduler: Annotated[Spec, Component("schedulers")] | None = None
    epochs: Positive | None = None
    steps: Positive | None = None
    monitor: MonitorConfig | None = None
    patience: Positive | None = None
    clip_norm: Annotated[float, Gt(0)] | None = None
    accumulate: Positive = 1
    micro_batch: Positive | None = None
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    cache: Literal["auto", "memory", "disk", "off"] = "auto"
    split: str = "train"
    enabled: bool = True


class BaselineConfig(Section):
    """Other stages for the same data, student and teachers, to compare with.

    Attributes:
        stages: the stages.
        title: name in tables.
        router: router of its stages, by default the recipe's.
        after: stage of the recipe whose student it starts from; by default a new student.
        stacking: how masks of one teacher meet in its stages, by default as in the recipe.
    """

    stages: Annotated[list[StageConfig], MinLen(1)]
    title: str = ""
    router: RouterConfig | None = None
    after: SnakeCase | None = None
    stacking: Literal["independent", "cumulative"] | None = None


class ZeroShotConfig(Section):
    """Classification by the names of the classes, through a model's own text tower.

    Attributes:
        templates: prompts with `{}` at the place of the name; by default three for photos.
        names: what the classes are called in prompts, in the order of the data set; by default its own names.
    """

    templates: Annotated[list[str], MinLen(1)] | None = None
    names: list[str] | None = None


class RetrievalConfig(Section):
    """Retrieval between two modalities, such as pictures and texts.

    Attributes:
        same: batch field of integers; rows with equal values are right answers for each other. By default `concept`
            where the data set has such a field, else a row's own partner alone.
        rank_agreement: K: also compare how student and teachers order the K wrong answers of each query that are
            nearest by the student, by Kendall's tau; each teacher that judges pairs scores K pairs a query then.
    """

    same: str | None = None
    rank_agreement: Annotated[int, Ge(2)] | None = None


class ProbeConfig(Section):
    """What is fitted on frozen embeddings of the training split, to tell what is in them.

    Attributes:
        knn_k: neighbours that vote for the class; null leaves this probe out.
        linear: fit a linear classifier.
        teachers: fit a linear map from the student's embedding to that of each teacher.
        train_rows: rows that it is fitted on, evenly spaced over the training rows.
    """

    knn_k: Positive | None = 10
    linear: bool = True
    teachers: bool = True
    train_rows: Positive = 4000


class EvaluationConfig(Section):
    """What is measured at the end.

    Attributes:
        splits: test splits.
        batch_size: rows of a batch.
        embeddings: whether models that give embeddings are measured by them, also in validation.
        zero_shot: classification by class names; null leaves it out.
        retrieval: retrieval between two modalities; null leaves it out.
        probe: probes of frozen embeddings; null leaves them out.
        max_rows: rows of a split whose embeddings are kept; of larger splits evenly spaced ones.
        headline: metric that tables and comparisons of runs are about, such as "retrieval_r1"; by default accuracy
            (mIoU for dense labels), or what is known of a student without a classifier.
    """

    splits: Annotated[list[str], MinLen(1)] = ["test"]
    batch_size: Positive = 512
    embeddings: Literal["auto", "off"] = "auto"
    zero_shot: ZeroShotConfig | None = ZeroShotConfig()
    retrieval: RetrievalConfig | None = RetrievalConfig()
    probe: ProbeConfig | None = ProbeConfig()
    max_rows: Positive = 20_000
    headline: SnakeCase | None = None


class CacheConfig(Section):
    """How the signals of frozen teachers are kept, where a stage computes them once.

    Attributes:
        folder: folder of the signals on disk, which all runs that name it share. Without it only signals that do not
            fit in memory go to disk: to `$MOEKD_CACHE_HOME`, or `cache` in the working folder.
        codec: how signals are stored: exactly (`fp32`), rounded (`bf16`, `fp16`), or in steps (`int8`, one scale a
            channel).
        logits: how logits are stored where they differ; `top_k` keeps the largest and the mass of the rest, `sampled`
            draws from the distribution without bias.
        k: classes that `top_k` keeps, or draws of `sampled`.
        temperature: softmax temperature of the loss that reads logits of `top_k` or `sampled`.
        memory_gb: most memory that the signals of a stage may take.
        disk_gb: most space that the signals of a stage may take on disk.
        missing: what a signal that the folder does not hold leads to: `compute` it, or `raise`.
    """

    folder: str | None = None
    codec: Literal["fp32", "bf16", "fp16", "int8"] = "fp32"
    logits: Literal["fp32", "bf16", "fp16", "int8", "top_k", "sampled"] | None = None
    k: Positive = 16
    temperature: Annotated[float, Gt(0)] = 1.0
    memory_gb: Annotated[float, Ge(0)] = 2.0
    disk_gb: Annotated[float, Ge(0)] = 20.0
    missing: Literal["compute", "raise"] = "compute"


class TrainerConfig(Section):
    """How the training loop runs.

    Attributes:
        mixed_precision: type of autocast.
        log_every: steps between two log lines.
        checkpoint_every: steps between two checkpoints, besides the one at the end of each epoch.
        keep: checkpoints that are kept.
        trackers: where metrics go besides the run folder.
        deterministic: use deterministic algorithms only.
        device: where to train.
        threads: CPU threads; PyTorch's choice by default.
        overlap: let live teachers run on the next batch while the student trains on this one, on a GPU on a stream of
            its own. For frozen teachers that see whole batches without transforms; a stage says whether it does. Not
            yet measured on a GPU; nothing is won without one.
        on_nonfinite: what a step leads to whose loss or gradient is not finite: `raise` stops the run, `skip` leaves
            the step out, `rollback` also takes the weights and the optimizer's memory back to the last checkpoint.
        max_nonfinite: such steps in a row (`rollback`: since the last checkpoint) after which the run stops anyway.
        on_failed_save: what a checkpoint leads to that can't be written, as on a full disk: `stop` ends the run, `wait`
            pauses it and tries again until there is space or a signal comes, `continue` goes on without it. The
            checkpoints from before are untouched.
        timeout_minutes: how long one of several processes waits for the others before it stops with a message.
    """

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    log_every: Positive = 20
    checkpoint_every: Positive | None = None
    keep: Positive = 2
    trackers: list[Tracker] = ["tensorboard"]
    deterministic: bool = True
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Positive | None = None
    overlap: bool = False
    on_nonfinite: Literal["raise", "skip", "rollback"] = "raise"
    max_nonfinite: Positive = 10
    on_failed_save: Literal["stop", "wait", "continue"] = "stop"
    timeout_minutes: Annotated[float, Gt(0)] = 30.0


class RecipeConfig(Section):
    """A whole config file.

    Attributes:
        title: name in reports.
        seed: seed of everything random.
        paper: the publication it reproduces.
        data: the data set.
        student: the model to train.
        teachers: the models to learn from, by name.
        masks: mask that is put on each tap of each teacher; makes a variant "teacher/tap" of each.
        router: chooses teachers for each instance.
        stages: what is trained, in order.
        baselines: other stages to compare with, by name.
        evaluation: what is measured at the end.
        cache: how what frozen teachers say is kept.
        trainer: how the training loop runs.
    """

    title: str = ""
    seed: Annotated[int, Ge(0), Lt(2**32)] = 0
    paper: PaperConfig | None = None
    data: DataConfig
    student: ModelConfig
    teachers: dict[Name, TeacherConfig] = {}
    masks: MasksConfig | None = None
    router: RouterConfig | None = None
    stages: Annotated[list[StageConfig], MinLen(1)]
    baselines: dict[Name, BaselineConfig] = {}
    evaluation: EvaluationConfig = EvaluationConfig()
    cache: CacheConfig = CacheConfig()
    trainer: TrainerConfig = TrainerConfig()
