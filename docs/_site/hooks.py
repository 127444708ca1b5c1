"""Brings the pages that lie outside docs/ into the site: README as its start, configs, and the project's own pages."""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "configs/README.md": "configs/README.md"}
PAGES |= {name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md")}
LINK = re.compile(r"(\]\()([^)\s#:]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages, and a page for each config."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    recipes = sorted((ROOT / "configs/recipes").glob("*.yaml"))  # a link, which rglob does not enter
    configs = [path for ending in ("yaml", "sbatch") for path in sorted((ROOT / "configs").rglob(f"*.{ending}"))]
    for path in [*configs, *recipes, ROOT / "LICENSE"]:
        files.append(_page_of_file(path, config))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lets links that are right in the repository lead to the pages of the site."""
    sources = {place: source for source, place in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    here = posixpath.dirname(page.file.src_uri)

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        place = posixpath.relpath(_place(target), here or ".")
        return f"{match[1]}{place}{match[3] or ''}{match[4]}"

    return LINK.sub(moved, markdown)


def _place(path: str) -> str:
    """Where a file of the repository stands in the site."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("notebooks/"):
        return path.replace(".ipynb", ".md")
    if path.startswith("configs/") or path == "LICENSE":
        return f"{path}.md"
    return path.removeprefix("docs/")


def _page_of_file(path: Path, config: Any) -> File:
    """A page that shows a config, or the license, as it is."""
    name = path.relative_to(ROOT).as_posix()
    language = {".yaml": "yaml", ".sbatch": "bash"}.get(path.suffix, "text")
    text = path.read_text(encoding="utf-8")
    content = f"# {name.removeprefix('configs/')}\n\n```{language}\n{text}```\n"
    file = File.generated(config, f"{name}.md", content=content)
    file.inclusion = InclusionLevel.NOT_IN_NAV  # other pages link to it
    return file
