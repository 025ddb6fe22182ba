"""The documentation as a site: links lead somewhere, pages have their place, nothing is loaded from elsewhere."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import pytest
from playwright.async_api import async_playwright

from tests.chromium import FLAGS, chromium

NAV = """
[project]
site_name = "trial"
docs_dir = "site-source"
site_dir = "site"
use_directory_urls = false
nav = [{ "Start" = "README.md" }, { "A" = "a.md" }, { "Outside" = "repository/part/README.md" }]
[project.theme]
font = false
"""


@pytest.fixture(scope="module")
def make_site(source_tree: Path) -> Iterator[ModuleType]:
    """docs/make_site.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(source_tree / "docs")
        import make_site  # pyright: ignore[reportMissingImports] # found by the path of this test

        yield make_site


@pytest.fixture
def repository(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a small repository, one of whose pages has the given text."""

    def make(text: str) -> Path:
        root = tmp_path / "repository"
        for name, content in {
            "zensical.toml": NAV,
            "docs/README.md": "# Start\n\n[A](a.md)\n",
            "docs/a.md": f"# A\n\n{text}\n",
            "part/README.md": "# Part\n\n## Below\n\n[back](../docs/a.md), [code](code.py)\n",
            "part/code.py": "print('hello')\n",
        }.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return root

    return make


def test_every_link_of_the_documentation_leads_somewhere(
    source_tree: Path, make_site: ModuleType, tmp_path: Path
) -> None:
    """Files only: `make docs` builds the pages and checks anchors, too."""
    make_site.stage(source_tree, tmp_path / "site")
    assert (tmp_path / "site/repository/deploy/README.md").exists()


def test_links_to_files_outside_docs_lead_to_a_copy(
    make_site: ModuleType, repository: Callable[[str], Path], tmp_path: Path
) -> None:
    """Of folders the README.md, with what it links to; code keeps its text."""
    root = repository(
        "[part](../part), [below](../part/README.md#below), `[not](this.md)`\n\n    [nor](that.md)"
    )
    make_site.stage(root, tmp_path / "site")
    assert (tmp_path / "site/a.md").read_text() == (
        "# A\n\n[part](repository/part/README.md), [below](repository/part/README.md#below), `[not](this.md)`\n\n"
        "    [nor](that.md)\n"
    )
    assert (
        (tmp_path / "site/repository/part/README.md")
        .read_text()
        .endswith("[back](../../a.md), [code](code.py)\n")
    )
    assert (tmp_path / "site/repository/part/code.py").exists()


@pytest.mark.parametrize(
    "link", ["gone.md", "../part/gone.py", "../docs", "../../elsewhere.md", "/etc/hosts", "pictures/gone.png"]
)
def test_a_link_that_leads_nowhere_is_named_with_its_line(
    make_site: ModuleType, repository: Callable[[str], Path], tmp_path: Path, link: str
) -> None:
    root = repository(f"[x]({link})")
    if link == "../docs":
        (root / "docs/README.md").unlink()
    with pytest.raises(make_site.Broken) as broken:
        make_site.stage(root, tmp_path / "site")
    assert f"docs/a.md:3: {link} leads nowhere" in broken.value.faults


def test_a_page_without_a_place_in_the_navigation_is_named(
    make_site: ModuleType, repository: Callable[[str], Path], tmp_path: Path
) -> None:
    root = repository("text")
    (root / "docs/lost.md").write_text("# Lost\n")
    with pytest.raises(make_site.Broken, match=r"docs/lost\.md: not in `nav`"):
        make_site.stage(root, tmp_path / "site")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[x](README.md#nowhere)", "anchor does not exist"),
        ("[x](../part/README.md#nowhere)", "anchor does not exist"),
        ("[x](#nowhere)", "anchor does not exist"),
        ("::: tipoff.Nothing", "Nothing"),
        ('<img src="https://example.com/x.png" alt="">', "loads https://example.com/x.png from elsewhere"),
        ('<script src="//example.com/x.js"></script>', "loads //example.com/x.js from elsewhere"),
        ('<a href="gone.html">x</a>', "gone.html leads nowhere"),
    ],
)
def test_the_build_fails_for(
    make_site: ModuleType, repository: Callable[[str], Path], tmp_path: Path, text: str, complaint: str
) -> None:
    root = repository(text)
    with (root / "zensical.toml").open("a") as configuration:
        configuration.write("[project.plugins.mkdocstrings.handlers.python]\n")
    (tmp_path / "build").mkdir()
    with pytest.raises(make_site.Broken, match=complaint):
        make_site.build(root, tmp_path / "build")


@pytest.fixture(scope="module")
def site(source_tree: Path, make_site: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site. Building it is the check of `make docs`."""
    return make_site.build(source_tree, tmp_path_factory.mktemp("build"))


@pytest.mark.slow
def test_the_site_has_the_api_from_docstrings(site: Path) -> None:
    page = (site / "api.html").read_text()
    assert "A server for one game" in page
    assert 'id="tipoff_gameserver.GameServer.lock"' in page or 'id="tipoff.GameServer.lock"' in page


@pytest.mark.slow
def test_the_site_is_built_without_a_network(source_tree: Path, tmp_path: Path) -> None:
    """In a network namespace with nothing in it, not even loopback."""
    unshare = shutil.which("unshare")
    alone = [unshare, "--map-root-user", "--net"] if unshare else []
    if not unshare or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no namespaces")
    code = f"import make_site, pathlib; make_site.build(make_site.ROOT, pathlib.Path({str(tmp_path)!r}))"
    done = subprocess.run(
        [*alone, sys.executable, "-c", code], cwd=source_tree / "docs", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and writes no log."""

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(120)
async def test_a_browser_loads_the_site_from_its_own_place_only(site: Path) -> None:
    handler = functools.partial(Quiet, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"127.0.0.1:{server.server_port}"
        asked: set[str] = set()
        try:
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
                page = await browser.new_page()
                page.on("request", lambda request: asked.add(request.url))
                for name in ("index.html", "api.html", "architecture.html", "repository/deploy/index.html"):
                    await page.goto(f"http://{here}/{name}", wait_until="networkidle")
                await browser.close()
        finally:
            server.shutdown()
    addresses = {urlsplit(url).netloc for url in asked if urlsplit(url).scheme not in ("data", "blob")}
    assert addresses == {here}
