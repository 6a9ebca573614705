"""Pages that are written from the code when the site is built, so that they can't fall behind it."""

from __future__ import annotations

import re
from pathlib import Path

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = re.compile(r"<!-- options: ([a-z_ ]+) -->")
RESULTS = re.compile(r"<!-- results: ([\w-]+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the config reference, read from the registries, and the changelog and contributing pages."""
    from moekd.config import reference_markdown

    pages = {
        "reference/config.md": reference_markdown(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(),
        "contributing.md": (ROOT / "CONTRIBUTING.md").read_text().replace("](docs/", "]("),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace `<!-- options: COMMAND -->` by what the command takes, `<!-- results: NAME -->` by a committed table."""
    markdown = OPTIONS.sub(lambda found: options_table(found[1]), markdown)
    return RESULTS.sub(lambda found: results_table(found[1]), markdown)


def results_table(name: str) -> str:
    """Return the committed results of a benchmark suite."""
    path = ROOT / "benchmarks" / "results" / f"{name}.md"
    return path.read_text() if path.is_file() else "*No results are committed for this version.*"


def options_table(name: str) -> str:
    """Return a table of the arguments and options of a command ("distill", "data prepare")."""
    from moekd.cli.main import app

    command: click.Command = typer.main.get_command(app)
    for part in name.split():
        command = command.commands[part]  # type: ignore[attr-defined]
    rows = ["| argument | meaning | default |", "|---|---|---|"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        flags = [f"`{flag}`" for flag in (*parameter.opts, *parameter.secondary_opts)]
        label = (
            f"`{parameter.metavar or parameter.name}`" if parameter.param_type_name == "argument" else ", ".join(flags)
        )
        default = parameter.default
        shown = "required" if parameter.required else "" if default in (None, (), [], "") else f"`{default}`"
        text = str(getattr(parameter, "help", "") or "").replace("|", "\\|")
        rows.append("| " + " | ".join([label.replace("|", "\\|"), text, shown]) + " |")
    return "\n".join(rows)
