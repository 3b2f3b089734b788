"""The site builds strictly, needs no other host, and has every public name."""

import inspect
import os
import re
import subprocess
import sys

import pytest
from pages import ROOT

import platon_prune


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of a site just built; a link that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert build.returncode == 0, build.stdout + build.stderr
    return folder


def test_the_site_builds_strictly_and_every_page_is_in_it(site):
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    assert pages
    assert all((site / page).with_suffix(".html").is_file() for page in pages)


def test_no_page_loads_anything_from_another_host(site):
    loaded = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*?\b(?:src|href)=\"?([^\" >]+)")
    for page in site.rglob("*.html"):
        targets = loaded.findall(page.read_text())
        assert targets
        assert not [target for target in targets if re.match(r"(?:https?:)?//", target)]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//", sheet.read_text())


def test_search_finds_its_index_and_starts_on_a_page_that_is_opened_from_the_disk(site):
    # Neither fetch nor workers are there for a file: the index comes as a script, and so does
    # what takes a worker's place.
    index = (site / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = {")
    assert "scheduler" in index
    for page in set(site.rglob("*.html")) - {site / "404.html"}:  # which a server shows
        (shim,) = re.findall(r'<script src="([^"]*iframe-worker[^"]*)"', page.read_text())
        assert "window.Worker" in (page.parent / shim).read_text()


def test_every_public_name_is_on_the_page_of_the_api():
    page = (ROOT / "docs" / "api.md").read_text()
    shown = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)$", page, re.MULTILINE)}
    public = {
        name
        for name in platon_prune.__all__
        if not name.startswith("_") and not inspect.ismodule(getattr(platon_prune, name))
    }
    assert public <= shown


def test_what_a_docstring_refers_to_is_a_link_or_code_on_the_site(site):
    page = (site / "api.html").read_text()
    assert not re.findall(r":(?:class|func|meth|math|mod|attr|exc):", page)
    assert 'href="#platon_prune.Criterion"' in page
