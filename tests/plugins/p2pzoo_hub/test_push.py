"""Uploads to a hub on the loopback interface: cards of runs, and pages as static Spaces."""

import json

import pytest
import yaml
from hub_server import TOKEN
from p2pzoo_hub.push import Target, push_files

import p2pzoo
from p2pzoo.utils.errors import UserError


@pytest.fixture
def finished(shared_complete):
    [folder] = shared_complete.glob("*/*")
    return folder


@pytest.fixture
def login(monkeypatch, hub):
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def posts(hub):
    return [request for request in hub.requests if request.startswith("POST") and "/commit/" in request]


def test_a_card_is_uploaded_in_one_commit_and_the_model_loads_from_there(hub, login, finished, run_cli):
    result = run_cli("card", finished, "--push", "me/tiny", "--licence", "mit")
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1] == f"{hub.endpoint}/me/tiny"
    repo = hub.repos["model", "me/tiny"]
    files = repo.commits[repo.refs["main"]]
    assert {"README.md", "model.safetensors", "recipe.toml", "samples.png"} < set(files)
    assert b"license: mit" in files["README.md"]
    assert len(posts(hub)) == 1
    assert not repo.private
    assert p2pzoo.load("hf:me/tiny", device="cpu").run == p2pzoo.load(finished, device="cpu").run
    assert TOKEN not in result.output


def test_the_folder_is_kept_where_one_is_named_and_json_has_the_address(hub, login, finished, run_cli, tmp_path):
    result = run_cli("card", finished, "-o", tmp_path / "card", "--push", "me/tiny", "--private", "--json")
    document = json.loads(result.output)
    assert document["url"] == f"{hub.endpoint}/me/tiny"
    assert (tmp_path / "card" / "model.safetensors").is_file()
    assert hub.repos["model", "me/tiny"].private


def test_a_branch_is_made_where_it_is_new(hub, login, finished, run_cli):
    hub.add("me/tiny", {"README.md": b"old"})
    result = run_cli("card", finished, "--push", "me/tiny", "--revision", "v2")
    assert result.exit_code == 0, result.output
    repo = hub.repos["model", "me/tiny"]
    assert repo.commits[repo.refs["main"]] == {"README.md": b"old"}
    assert "model.safetensors" in repo.commits[repo.refs["v2"]]
    assert result.output.splitlines()[-1] == f"{hub.endpoint}/me/tiny/tree/v2"


def test_paths_of_the_machine_are_not_uploaded_and_an_older_recipe_is_removed(hub, login, complete, run_cli, tmp_path):
    [folder] = complete.glob("*/*")
    recipe = (folder / "recipe.toml").read_text()
    start = f'[init]\ngenerator = "{folder / "model.safetensors"}"\n'
    (folder / "recipe.toml").write_text(recipe.replace("[init]\n", start))
    hub.add("me/tiny", {"recipe.toml": b"old", "notes.txt": b"mine"})
    result = run_cli("card", folder, "--push", "me/tiny")
    assert result.exit_code == 0, result.output
    repo = hub.repos["model", "me/tiny"]
    files = repo.commits[repo.refs["main"]]
    assert set(files) == {"README.md", "model.safetensors", "samples.png", "notes.txt"}
    assert str(tmp_path) not in files["README.md"].decode()
    assert "recipe.toml" not in files["README.md"].decode()


def test_a_public_repository_is_not_used_for_a_private_model(hub, login, finished, run_cli):
    hub.add("me/tiny", {"README.md": b"old"})
    result = run_cli("card", finished, "--push", "me/tiny", "--private")
    assert result.exit_code == 2
    assert "--private: me/tiny exists and is public" in result.output
    assert not posts(hub)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--push", "tiny"], "--push tiny: 'tiny' is no name on the hub"),
        (["--push", "me/tiny@v1"], "--push me/tiny@v1: give the branch with --revision"),
        (["--push", "me/tiny", "--revision", "../x"], "'../x' is no revision"),
        (["--private", "-o", "card"], "--private is for --push OWNER/NAME"),
        (["--revision", "v1", "-o", "card"], "--revision is for --push OWNER/NAME"),
        (["--push", "me/tiny", "--force"], "--force is for -o DIR"),
        ([], "give -o DIR, a folder to write, or --push OWNER/NAME"),
    ],
)
def test_options_that_cannot_be_used_are_refused_before_anything_is_written(
    hub, login, finished, run_cli, options, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    result = run_cli("card", finished, *options)
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert hub.requests == []
    assert [*tmp_path.iterdir()] == []


def test_without_a_login_nothing_is_written(hub, finished, run_cli, tmp_path):
    result = run_cli("card", finished, "-o", tmp_path / "card", "--push", "me/tiny")
    assert result.exit_code == 2
    assert "--push me/tiny: needs a login: log in with `hf auth login`" in result.output
    assert not (tmp_path / "card").exists()


def test_a_token_that_may_not_write_and_a_hub_that_is_down_are_one_line(hub, finished, run_cli, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    result = run_cli("card", finished, "--push", "me/tiny")
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    assert "--push me/tiny: " in result.output
    assert "log in with" in result.output
    assert "hf_other" not in result.output
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.faults.add("down")
    result = run_cli("card", finished, "--push", "me/tiny")
    assert (result.exit_code, len(result.output.splitlines())) == (2, 1), result.output
    assert "the hub is not reachable" in result.output


def test_a_model_that_is_published_is_refused_as_before(hub, login, run_cli):
    result = run_cli("card", "zoo:earth-small", "--push", "me/tiny")
    assert result.exit_code == 2
    assert "is published already" in result.output
    assert not posts(hub)


def test_files_of_a_space_are_uploaded_as_a_space(hub, login, tmp_path):
    (tmp_path / "index.html").write_text("<p>")
    url = push_files([tmp_path / "index.html"], Target("me/page", "space"), "a page")
    assert url == f"{hub.endpoint}/spaces/me/page"
    repo = hub.repos["space", "me/page"]
    assert repo.commits[repo.refs["main"]]["index.html"] == b"<p>"
    assert repo.messages[-1] == "a page"


def test_offline_mode_uploads_nothing(hub, login, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set: unset it to upload"):
        Target("me/page", "space").check()


class TestSpace:
    @pytest.fixture
    def without_graph(self, monkeypatch):
        """Write the page's files without a network inside: exporting it takes as long as all other tests here."""
        from p2pzoo_export import web

        def export_web(model, out, **_):
            out.mkdir()
            for name in web.PAGE_FILES:
                (out / name).write_text("x")
            from p2pzoo_export.graph_check import ExportResult

            return ExportResult(**dict.fromkeys(ExportResult.__dataclass_fields__) | {"notes": []})

        monkeypatch.setattr(web, "export_web", export_web)

    def test_the_folder_of_a_page_is_a_static_space(self, hub, login, finished, run_cli, without_graph, tmp_path):
        arguments = ["export", finished, "--to", "web", "--space", "-o", tmp_path / "page", "--json"]
        result = run_cli(*arguments)
        assert result.exit_code == 0, result.output
        header = yaml.safe_load((tmp_path / "page" / "README.md").read_text().split("---")[1])
        assert (header["sdk"], header["app_file"], header["title"]) == ("static", "index.html", "tiny")
        assert hub.requests == []
        assert "url" not in json.loads(result.output)

    def test_it_is_uploaded_with_push(self, hub, login, finished, run_cli, without_graph, tmp_path):
        options = ["--to", "web", "--space", "-o", tmp_path / "page", "--push", "me/page", "--json"]
        result = run_cli("export", finished, *options)
        assert result.exit_code == 0, result.output
        assert json.loads(result.output)["url"] == f"{hub.endpoint}/spaces/me/page"
        repo = hub.repos["space", "me/page"]
        assert {"index.html", "model.js", "README.md"} < set(repo.commits[repo.refs["main"]])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--to", "onnx", "--space", "-o", "a.onnx"], "--space is only for --to web"),
            (["--to", "web", "-o", "page", "--push", "me/page"], "--push uploads a Space: add --space"),
            (["--to", "web", "--space", "-o", "page.html"], "a Space is a folder: give a name without .html"),
        ],
    )
    def test_options_that_do_not_fit_are_refused(self, hub, login, finished, run_cli, options, message):
        result = run_cli("export", finished, *options)
        assert (result.exit_code, len(result.output.splitlines())) == (2, 1)
        assert message in result.output
