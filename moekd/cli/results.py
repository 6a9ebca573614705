"""`moekd evaluate`, `predict`, `report` and `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .arguments import OverridesArgument, RunArgument


def evaluate(
    run: RunArgument,
    overrides: OverridesArgument = None,
    split: Annotated[list[str] | None, typer.Option(help="Split to test on, default those of the config.")] = None,
) -> None:
    """Measure the student of RUN again, also on other splits or changed data (`data.preset=easy`)."""
    from ..evaluate_run import evaluate_run
    from ..report.measures import EMBEDDING, known_measures, measure_label

    results = evaluate_run(run, overrides or (), split or ())
    shares = known_measures(results.values(), ("accuracy", "balanced_accuracy", "weighted_f1", "miou", *EMBEDDING))
    table = Table("measure", *results)
    for key in shares:
        table.add_row(measure_label(key), *(f"{100 * m[key]:.2f}" if key in m else "-" for m in results.values()))
    if known_measures(results.values(), ("loss",)):
        table.add_row("loss", *(f"{m['loss']:.4f}" if "loss" in m else "-" for m in results.values()))
    table.add_row("samples", *(str(m.get("n", "-")) for m in results.values()))
    Console().print(table)


def predict(
    run: RunArgument,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[INPUT]...", help="Pictures, folders of pictures, or .npy arrays of the field's shape."
        ),
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="The same as INPUT; may be repeated.")] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,C", help="What to choose from, default the student's classes; may be repeated."),
    ] = None,
    templates: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help='Prompt for labels, "a photo of a {}."; may be repeated.'),
    ] = None,
    label_vectors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Labels with vectors of a text encoder, for students without a text tower."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(help="Rank the pictures by how well they fit this text; may be repeated.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="Labels to print for each input, or pictures for each text.")] = 5,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write embeddings to a .safetensors or .json file instead.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs in a batch.")] = 64,
    device: Annotated[str, typer.Option(help="Where to run: `cpu`, `cuda`, `mps`.")] = "cpu",
) -> None:
    """Ask the student of RUN (or an exported student's folder) about files.

    Examples: `moekd predict RUN a.png`, `moekd predict RUN --image a.png --labels "cat,dog"`,
    `moekd predict RUN pictures/ --text "two dogs"`, `moekd predict RUN --text "a cat" --output cat.safetensors`.
    """
    from .answers import answer

    lines = answer(
        run,
        [*(inputs or ()), *(image or ())],
        labels=labels,
        templates=templates,
        label_vectors=label_vectors,
        texts=text or (),
        top=top,
        output=output,
        as_json=as_json,
        batch_size=batch_size,
        device=device,
    )
    for line in lines:
        typer.echo(line)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run, or several to compare.")],
    output: Annotated[Path, typer.Option(help="Page that compares several runs.")] = Path("comparison.html"),
) -> None:
    """Write the report page of a run again, or one page that compares several."""
    from ..report import compare_report, write_report

    page = write_report(runs[0]) if len(runs) == 1 else compare_report(runs, output)
    typer.echo(f"report: {page}")


def export(
    run: RunArgument,
    format: Annotated[
        str,
        typer.Option("--format", help="safetensors, torch_export, onnx, open_clip, transformers, or hub."),
    ] = "safetensors",
    output: Annotated[Path | None, typer.Option(help="Where to write, default inside of the run.")] = None,
    opset: Annotated[int | None, typer.Option(help="Version of the ONNX operators.")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="ONNX: also write weights of 8 bits.")] = False,
    seeds: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Run with another seed, for intervals in the card.")
    ] = None,
    repo: Annotated[str | None, typer.Option(help="hub: the repository, `owner/name`.")] = None,
    formats: Annotated[str, typer.Option(help="hub: formats to upload, with commas; the first at the top.")] = "",
    private: Annotated[bool, typer.Option("--private", help="hub: make a private repository.")] = False,
    update: Annotated[bool, typer.Option("--update", help="hub: add a commit to an existing repository.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="hub: show what would be uploaded.")] = False,
) -> None:
    """Write the student of RUN for use elsewhere."""
    from ..errors import ConfigError
    from ..export import export as run_export
    from ..export import push

    if format != "hub":
        if repo or formats or private or update or dry_run:
            raise ConfigError("--repo, --formats, --private, --update and --dry-run go with --format hub")
        typer.echo(f"exported: {run_export(run, format, output, opset=opset, int8=int8, seeds=seeds or ())}")
        return
    if repo is None or output is not None:
        raise ConfigError("--format hub: expected --repo owner/name and no --output")
    chosen = [name.strip() for name in (formats or "safetensors").split(",")]
    upload = push(
        run, repo, chosen, private=private, update=update, dry_run=dry_run, seeds=seeds or (), opset=opset, int8=int8
    )
    for name, size in upload.files.items():
        typer.echo(f"{size:>12,}  {name}")
    typer.echo(f"would upload to {repo}" if upload.url is None else f"uploaded: {upload.url}")
