"""Builds the documentation as a site in build/site, and checks it: `python docs/make_site.py`, or `make docs`.

    docs/ and what it links to ──copy──> build/site-source ──zensical──> build/site ──check──> links, anchors, loads

Pages keep their places, so that the same links lead on in an editor, on a forge and on the site. A file outside docs/
that a page links to becomes `repository/...` on the site, and so do the files that it links to in turn.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parent.parent
NOT_PUBLISHED = {".py", ".toml", ".pyc"}
"""Files in docs/ that make pages; they are on the site only where a page links to them."""

OUTSIDE = "repository/"
"""Where the files are on the site that do not come from docs/."""

_CODE_OR_LINK = re.compile(r"(?P<code>(?P<ticks>`+).*?(?P=ticks))|\]\((?P<link>[^)\s]+)\)")


class Broken(Exception):
    """What is wrong with the documentation, one line for each fault."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = list(faults)
        super().__init__("\n".join(self.faults))


def stage(root: Path, target: Path) -> None:
    """Copy docs/ of the repository `root`, and every file that its pages link to, into the new directory `target`.

    Raises `Broken` for links to files that do not exist, and for pages that the navigation does not have.
    """
    queue = [path for path in sorted((root / "docs").rglob("*")) if path.is_file()]
    queue = [path for path in queue if path.suffix not in NOT_PUBLISHED]
    queue += [root / page.removeprefix(OUTSIDE) for page in navigation(root) if page.startswith(OUTSIDE)]
    faults = pages_without_a_place(root)
    seen = set(queue)
    while queue:
        source = queue.pop()
        place = target / place_on_the_site(root, source)
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix != ".md":
            shutil.copyfile(source, place)
            continue

        def follow(link: str, source: Path = source) -> str:
            file, found = resolve(root, source, link)
            if file is None:
                return found
            if file not in seen:
                seen.add(file)
                queue.append(file)
            return found

        text = source.read_text()
        if source == root / "docs/adr/README.md":
            text += "\n" + list_of_decisions(source.parent)
        try:
            place.write_text(with_links(text, follow))
        except Broken as exc:
            faults += [f"{source.relative_to(root)}:{fault}" for fault in exc.faults]
    if faults:
        raise Broken(faults)


def resolve(root: Path, page: Path, link: str) -> tuple[Path | None, str]:
    """The file that `link` on `page` means (None: nothing to copy), and the link as it is on the site.

    A link to a folder means its README.md. Raises `Broken` when there is no such file in the repository.
    """
    parts = urlsplit(link)
    if parts.scheme or parts.netloc or not parts.path:
        return None, link
    file = (page.parent / unquote(parts.path)).resolve()
    if file.is_dir():
        file = file / "README.md"
    if not file.is_file() or not file.is_relative_to(root.resolve()):
        raise Broken([f"{link} leads nowhere"])
    here = target_directory(root, page)
    path = os.path.relpath(place_on_the_site(root, file), here)
    return file, parts._replace(path=path).geturl()


def place_on_the_site(root: Path, file: Path) -> Path:
    """Where a file of the repository is on the site: docs/ is its top, everything else in repository/."""
    inside = file.resolve().relative_to(root.resolve())
    if inside.parts[0] == "docs":
        return Path(*inside.parts[1:])
    return Path(OUTSIDE, inside)


def target_directory(root: Path, page: Path) -> Path:
    """The directory on the site from which the links of `page` start."""
    return place_on_the_site(root, page).parent


def with_links(text: str, follow: Callable[[str], str]) -> str:
    """`text` with every link replaced by `follow(link)`; code is left alone. Line numbers stay.

    Raises `Broken` with the lines of all links that `follow` refused.
    """
    faults: list[str] = []
    lines = text.split("\n")
    for number, line in code_left_out(lines):

        def replace(match: re.Match[str], number: int = number) -> str:
            if match["link"] is None:
                return match[0]
            try:
                return f"]({follow(match['link'])})"
            except Broken as exc:
                faults.extend(f"{number}: {fault}" for fault in exc.faults)
                return match[0]

        lines[number - 1] = _CODE_OR_LINK.sub(replace, line)
    if faults:
        raise Broken(faults)
    return "\n".join(lines)


def code_left_out(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not in a code block."""
    fence = ""
    for number, line in enumerate(lines, 1):
        found = re.match(r" *(```+|~~~+)", line)
        if fence:
            if found and found[1].startswith(fence) and line.strip() == found[1]:
                fence = ""
        elif found:
            fence = found[1]
        elif not line.startswith("    "):
            yield number, line


def pages_without_a_place(root: Path) -> list[str]:
    """A fault for each page of docs/ that zensical.toml does not have in its navigation. Decisions have a list."""
    there = navigation(root)
    pages = {str(path.relative_to(root / "docs")) for path in (root / "docs").rglob("*.md")}
    pages = {page for page in pages if not re.fullmatch(r"adr/\d.*", page)}
    return [f"docs/{page}: not in `nav` of zensical.toml" for page in sorted(pages - there)]


def navigation(root: Path) -> set[str]:
    """The pages that zensical.toml has in its navigation, as paths on the site."""
    return set(pages_of(tomllib.loads((root / "zensical.toml").read_text())["project"]["nav"]))


def pages_of(nav: Any) -> Iterator[str]:
    """Every page in a navigation, in its order."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(entry)


def list_of_decisions(folder: Path) -> str:
    """One line for each decision, the newest first."""
    pages = sorted(folder.glob("[0-9]*.md"), reverse=True)
    titles = [page.read_text().split("\n", 1)[0].removeprefix("# ") for page in pages]
    return "".join(f"* [{title}]({page.name})\n" for title, page in zip(titles, pages, strict=True))


class Page(HTMLParser):
    """What one built page has and needs: ids, links that a reader may follow, and files that the browser loads."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag in ("a", "area"):
            self.links += [given["href"]] if given.get("href") else []
        elif tag == "link" and not {"canonical", "next", "prev"} & set(given.get("rel", "").split()):
            self.loads.append(given.get("href", ""))
        self.loads += [given[name] for name in ("src", "data", "poster") if given.get(name)]


def faults_of(site: Path) -> Iterator[str]:
    """A line for each link or anchor of the site that leads nowhere, and for whatever a page loads from elsewhere."""
    pages = {path.resolve(): Page(path.read_text()) for path in site.rglob("*.html")}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for link in page.loads:
            if urlsplit(link).scheme not in ("", "data") or urlsplit(link).netloc:
                yield f"{name}: loads {link} from elsewhere"
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or name.name == "404.html":  # the latter answers at any depth
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file():
                yield f"{name}: {link} leads nowhere"
            elif parts.fragment and file in pages and unquote(parts.fragment) not in pages[file].ids:
                yield f"{name}: {link}: no such place on that page"
    for sheet in site.rglob("*.css"):
        for address in re.findall(r"(?:url\(|@import )[\"']?(https?:[^\"')]+|//[^\"')]+)", sheet.read_text()):
            yield f"{sheet.relative_to(site)}: loads {address} from elsewhere"


def build(root: Path, to: Path) -> Path:
    """Build the site of the repository `root` below the directory `to`; return the site. Raises `Broken`.

    `root/zensical.toml` decides how it looks. Everything it needs is installed; nothing is fetched.
    """
    source, site = to / "site-source", to / "site"
    for directory in (source, site):
        shutil.rmtree(directory, ignore_errors=True)
    stage(root, source)
    # Zensical keeps its cache beside the file, and takes paths from there.
    configuration = to / "zensical.toml"
    configuration.write_text((root / "zensical.toml").read_text().replace("@ROOT@", str(root.resolve())))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", configuration],
        cwd=to,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise Broken([re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)])
    faults = list(faults_of(site))
    if faults:
        raise Broken(faults)
    return site


if __name__ == "__main__":
    try:
        (ROOT / "build").mkdir(exist_ok=True)
        made = build(ROOT, ROOT / "build")
    except Broken as exc:
        sys.exit(str(exc))
    print(f"{made.relative_to(ROOT)}/index.html: {len(list(made.rglob('*.html')))} pages", file=sys.stderr)
