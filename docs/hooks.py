"""What mkdocs.yml hooks into MkDocs: documents stay where they lie, and so do their links.

Every page keeps its path in the repository as its address. A pattern in the navigation, such as
`docs/notebooks/*.ipynb`, stands for the files that match. Pages are those of the navigation and what they link to;
other files that they link to, such as figures and recipes, come along as they are.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put files in the place of patterns."""
    config.nav = [one for one in map(_expand, config.nav or []) if one]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the documents of the navigation, and what they link to, instead of the folder `docs`."""
    for file in [one for one in files if one.src_dir == config.docs_dir]:
        files.remove(file)
    found, left = set[Path](), [ROOT / path for path in [*_paths(config.nav), *config.extra_css]]
    while left:
        path = left.pop().resolve()
        if path in found or not path.is_file():  # MkDocs names the links that lead nowhere
            continue
        found.add(path)
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in (".md", ".ipynb"):
            text = _text(path)
            left += [path.parent / link for link in LINK.findall(text)]
            files.append(File.generated(config, _page(name), content=LINK.sub(lambda one: _page(one[0]), text)))
        else:
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def _expand(entry: Any) -> Any:  # Any: an entry of a navigation is a text, a list or a dictionary
    """Replace patterns by lists of paths; what has none left is empty."""
    if isinstance(entry, str) and "*" in entry:
        return [_page(path.relative_to(ROOT).as_posix()) for path in sorted(ROOT.glob(entry))]
    if isinstance(entry, dict):
        return {name: kept for name, one in entry.items() if (kept := _expand(one))}
    return [kept for one in entry if (kept := _expand(one))] if isinstance(entry, list) else entry


def _paths(nav: Any) -> list[str]:
    """List the files of a navigation; a notebook's is that of the notebook."""
    if isinstance(nav, str):
        notebook = nav.removesuffix(".md") + ".ipynb"
        return [notebook if (ROOT / notebook).is_file() else nav]
    return [path for one in (nav.values() if isinstance(nav, dict) else nav) for path in _paths(one)]


def _page(name: str) -> str:
    """Name the page of a document, or of what ends in its name."""
    return re.sub(r"\.ipynb$", ".md", name)


def _text(path: Path) -> str:
    """Read a document as Markdown; of a notebook, its cells and what they print and show."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            text, picture = ("".join(data.get(kind, "")).strip("\n") for kind in ("text/plain", "image/png"))
            parts.append(f"![Output](data:image/png;base64,{picture})" if picture else f"```text\n{text}\n```")
    return "\n\n".join(parts)
