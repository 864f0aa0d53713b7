"""A hook of mkdocs: pages from outside docs/, and links that lead out of it.

CHANGELOG.md and CONTRIBUTING.md become pages of the site. A link to a file that is no page, such as
a pipeline's, is shown as its text alone: the site has no copy of the source.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
_OUTSIDE = ("CHANGELOG.md", "CONTRIBUTING.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/."""
    for name in _OUTSIDE:
        text = (_ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name.lower(), content=from_root(text)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take off the links that lead out of docs/."""
    return markdown if page.file.src_uri.startswith("api/") else without_links_out(markdown)


def from_root(markdown: str) -> str:
    """Return a page of the root as one of docs/: its links, seen from there."""

    def moved(link: re.Match[str]) -> str:
        target = link[2]
        inside = target.removeprefix("docs/")
        return f"[{link[1]}]({inside if inside != target else f'../{target}'}"

    return re.sub(r"\[([^\]]+)\]\(([^):#]+)(?=[)#])", moved, markdown)


def without_links_out(markdown: str) -> str:
    """Return a page of docs/ whose links to files outside are their text, or lead to pages."""
    for name in _OUTSIDE:
        markdown = markdown.replace(f"](../{name})", f"]({name.lower()})")
    return re.sub(r"\[([^\]]+)\]\(\.\./[^)]*\)", r"\1", markdown)
