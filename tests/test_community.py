"""What GitHub reads of the repository, and what the page of versions promises."""

import re
import tomllib

import pytest
import yaml
from pages import ROOT

import platon_prune

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_the_citation_is_of_this_version_and_of_the_paper_in_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for key in ("cff-version", "message", "title", "authors"):  # what the format requires
        assert citation[key]
    assert citation["version"] == platon_prune.__version__
    paper = citation["preferred-citation"]
    readme = re.sub(r"[{}]", "", (ROOT / "README.md").read_text())
    assert paper["title"] in readme
    names = [f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]]
    assert " and ".join(names) in readme
    assert f"{paper['start']}--{paper['end']}" in readme


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_an_issue_template_has_what_github_asks_of_a_form(path):
    form = yaml.safe_load(path.read_text())
    if path.stem == "config":
        assert form == {"blank_issues_enabled": True}
        return
    assert form["name"]
    assert form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in ("input", "textarea", "dropdown", "checkboxes")
        assert field["attributes"]["label"]


@pytest.mark.parametrize(
    ("row", "requirement"),
    [
        ("Python", "requires-python"),
        ("torch, the one requirement", "torch"),
        ("transformers, with accelerate", "transformers"),
        ("Lightning", "lightning"),
        ("torch-pruning", "torch-pruning"),
        ("ONNX Runtime", "onnxruntime"),
        ("OpenVINO", "openvino"),
        ("llvmlite", "llvmlite"),
        ("TRL", "trl"),
    ],
)
def test_the_page_of_versions_needs_what_the_package_requires(row, requirement):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    required = [*project["dependencies"], *(each for extra in extras for each in extra)]
    required.append("requires-python" + project["requires-python"])
    (version,) = {
        match.group(1)
        for each in required
        if (match := re.fullmatch(rf"{requirement}>=([\d.]+)", each))
    }
    page = (ROOT / "docs" / "support.md").read_text()
    needed = re.search(rf"^\| {re.escape(row)}[^|]*\| ([\d.]+)", page, re.MULTILINE).group(1)
    assert needed == version
