"""What a release consists of: the workflow that publishes it, and how to cite it."""

import re
import tomllib
from pathlib import Path

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def workflow():
    # YAML 1.1 reads the key `on` as true
    return yaml.load((ROOT / ".github/workflows/release.yml").read_text("utf-8"), yaml.BaseLoader)


@pytest.fixture(scope="module")
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))


def steps(job):
    return [step.get("uses") or step["run"] for step in job["steps"]]


class TestWorkflow:
    def test_a_tag_starts_it_and_nothing_else(self, workflow):
        assert workflow["on"] == {"push": {"tags": ["v*"]}}

    def test_actions_are_pinned_by_major_version(self, workflow):
        used = [step for job in workflow["jobs"].values() for step in steps(job) if re.match(r"[\w-]+/", step)]
        assert len(used) == 7
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@(release/)?v\d+", action) for action in used), used

    def test_packages_are_built_and_checked_before_they_are_published(self, workflow):
        build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
        commands = "\n".join(steps(build))
        expected = ("python -m build", "twine check --strict", "pip install dist/*.whl", "p2pzoo run")
        order = [commands.index(command) for command in expected]
        assert order == sorted(order)
        assert "build" in publish["needs"]
        handed_over = [step for job in (build, publish) for step in job["steps"] if "artifact" in step.get("uses", "")]
        names = [step["with"]["name"] for step in handed_over]
        assert len(names) == 2
        assert len({*names}) == 1

    def test_the_tests_of_the_readme_run_before_anything_is_published(self, workflow):
        [command] = re.findall(r"^pip install .*pytest.*$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
        assert command in steps(workflow["jobs"]["test"])
        assert "test" in workflow["jobs"]["publish"]["needs"]

    def test_only_the_job_that_publishes_has_a_right_and_there_is_no_token(self, workflow):
        assert workflow["permissions"] == {"contents": "read"}
        assert workflow["jobs"]["publish"]["permissions"] == {"id-token": "write"}
        assert not any("permissions" in workflow["jobs"][job] for job in ("test", "build"))
        assert "secrets." not in (ROOT / ".github/workflows/release.yml").read_text("utf-8")

    def test_it_builds_what_pyproject_says(self, workflow, monkeypatch, tmp_path):
        test, build = (workflow["jobs"][job] for job in ("test", "build"))
        for job in (test, build):
            [setup] = [step for step in job["steps"] if "setup-python" in step.get("uses", "")]
            assert f">={setup['with']['python-version']}" == PROJECT["requires-python"]
        [script] = [step["run"] for step in build["steps"] if "GITHUB_REF_NAME" in step.get("run", "")]
        code = script.partition("<<'PYTHON'\n")[2].rpartition("PYTHON")[0]
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("GITHUB_REF_NAME", f"v{PROJECT['version']}")
        exec(code, {})
        monkeypatch.setenv("GITHUB_REF_NAME", "v99")
        with pytest.raises(AssertionError, match="change it, or the tag"):
            exec(code, {})
        assert "p2pzoo" in PROJECT["scripts"]


class TestCitation:
    """By the structure that https://citation-file-format.github.io demands: cffconvert needs an old jsonschema."""

    def test_it_has_what_cff_1_2_needs(self, citation):
        assert citation["cff-version"] == "1.2.0"
        assert {"message", "title", "authors"} <= citation.keys()
        assert citation.keys() <= {
            "cff-version", "message", "type", "title", "version", "authors", "license", "abstract", "keywords",
            "preferred-citation", "date-released", "doi", "repository-code", "url",
        }  # fmt: skip
        assert citation["type"] == "software"
        for author in citation["authors"]:
            assert author.keys() <= {"name"} or {"family-names", "given-names"} <= author.keys()

    def test_version_and_licence_are_those_of_pyproject(self, citation):
        assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])

    def test_it_asks_to_cite_the_paper(self, citation):
        paper = citation["preferred-citation"]
        assert [author["family-names"] for author in paper["authors"]] == ["Isola", "Zhu", "Zhou", "Efros"]
        assert (paper["year"], paper["doi"]) == (2017, "10.1109/CVPR.2017.632")
        assert {"type", "title", "authors"} <= paper.keys()
