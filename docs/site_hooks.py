"""Hooks of MkDocs: what the site has beside the pages in docs/.

README.md becomes the first page; CHANGELOG.md and SECURITY.md become pages; other files of the repository that a page
links to are copied. Each package gets a page of its reference, from its docstrings.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md", "SECURITY.md": "SECURITY.md"}
"""Files in the root of the repository that become pages, with their names in the site."""
PACKAGES = ("results", "reporting", "statistics", "spaces", "planning", "store", "execution", "data", "judges", "steps")
"""Packages that have a page in the reference, those that a notebook uses first."""
_LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")


def on_config(config: Any) -> Any:
    """Add the reference to the navigation."""
    pages = [{f"sacpo.{package}": f"reference/{package}.md"} for package in PACKAGES]
    config.nav.append({"Reference": pages})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/, and the files that pages link to."""
    linked = set()
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        linked |= _outside(text, ROOT)
        files.append(File.generated(config, page, content=_LINK.sub(lambda m: m[1] + _in_site(ROOT, m[2]), text)))
    for path in sorted(ROOT.glob("docs/*.md")):
        linked |= _outside(path.read_text(encoding="utf-8"), path.parent)
    for path in sorted(linked):
        files.append(File.generated(config, f"files/{path.relative_to(ROOT)}", abs_src_path=str(path)))
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=_reference(package)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Point the links of a page in docs/ that lead out of that folder to their place in the site."""
    if page.file.generated_by is not None:
        return markdown
    return _LINK.sub(lambda m: m[1] + _in_site(ROOT / "docs", m[2]), markdown)


def _reference(package: str) -> str:
    """The page of a package: its own docstring, then every module."""
    modules = sorted(path.stem for path in (ROOT / "sacpo" / package).glob("[!_]*.py"))
    names = [f"sacpo.{package}", *(f"sacpo.{package}.{module}" for module in modules)]
    options = "    options: {members: false}\n"
    entries = [f"::: {name}\n{options if name == names[0] else ''}" for name in names]
    return f"# `sacpo.{package}`\n\n" + "\n".join(entries)


def _outside(text: str, folder: Path) -> set[Path]:
    """The files of the repository that a text links to and that are no pages."""
    paths = {_file(folder, target) for _, target in _LINK.findall(text)}
    return {path for path in paths if path.is_file() and _page(path) is None}


def _file(folder: Path, target: str) -> Path:
    """The file that a link leads to; a folder has no page, so its first space file or notebook stands for it."""
    path = (folder / target).resolve()
    return min([*path.glob("*.yaml"), *path.glob("*.ipynb")], default=path) if path.is_dir() else path


def _page(path: Path) -> str | None:
    """The name in the site of a file that is a page; None for other files."""
    if path.parent == ROOT:
        return PAGES.get(path.name)
    return path.name if path.parent == ROOT / "docs" and path.suffix == ".md" else None


def _in_site(folder: Path, target: str) -> str:
    """A link's target, seen from the top of the site, where all pages with such links are."""
    path = _file(folder, target)
    return _page(path) or f"files/{path.relative_to(ROOT)}"
