"""hf:OWNER/NAME against a hub on the loopback interface: what is downloaded, checked, recorded, and refused."""

import os
import re
import subprocess
import sys

import pytest
from hub_server import TOKEN

import p2pzoo
from p2pzoo.plugin.model_source import find_model
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import PACKAGE

EARTH = PACKAGE.parent / "plugins" / "p2pzoo_earth" / "earth_small"
FILES = {name: (EARTH / name).read_bytes() for name in ("model.safetensors", "recipe.toml", "README.md")}


@pytest.fixture
def model(hub):
    """The commit of me/earth on the hub."""
    return hub.add("me/earth", {**FILES, "evil.pkl": b"x", "extra.py": b"x"})


def refuses(match, name="me/earth"):
    with pytest.raises(UserError, match=match) as caught:
        find_model(f"hf:{name}")
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"hf:{name}: ")


def test_a_model_is_found_by_its_name_and_named_by_its_commit(hub, model):
    found = find_model("hf:me/earth")
    assert found.address == f"hf:me/earth@{model}"
    assert {file.name for file in found.folder.iterdir()} == {"model.safetensors", "recipe.toml"}
    assert (found.folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert p2pzoo.load("hf:me/earth", device="cpu").address == found.address


def test_only_the_files_that_p2pzoo_reads_are_downloaded(hub, model):
    find_model("hf:me/earth")
    downloads = {request.rpartition("/")[2] for request in hub.requests if request.startswith("GET /me/earth/resolve")}
    assert downloads == {"model.safetensors", "recipe.toml"}


def test_a_cached_commit_needs_no_network(hub, model):
    address = find_model("hf:me/earth").address
    hub.requests.clear()
    assert find_model(address).address == address
    assert hub.requests == []


def test_a_branch_that_moved_gives_the_new_commit_and_the_old_one_stays(hub, model):
    hub.repos["model", "me/earth"].commit({"recipe.toml": b"# new\n"})
    newer = find_model("hf:me/earth")
    assert newer.address != f"hf:me/earth@{model}"
    older = find_model(f"hf:me/earth@{model}")
    assert [(found.folder / "recipe.toml").read_bytes() for found in (older, newer)] == [
        FILES["recipe.toml"],
        b"# new\n",
    ]


def test_branches_are_revisions(hub, model):
    sha = hub.repos["model", "me/earth"].commit({"recipe.toml": b"# v2\n"}, branch="v2.0")
    hub.repos["model", "me/earth"].commits[sha] |= FILES
    assert find_model("hf:me/earth@v2.0").address == f"hf:me/earth@{sha}"


def test_without_a_network_the_cached_commit_is_taken_with_a_warning(hub, model):
    find_model("hf:me/earth")
    hub.faults.add("down")
    with pytest.warns(UserWarning, match=f"hf:me/earth: the hub is not reachable; the cached {model[:12]} is used"):
        assert find_model("hf:me/earth").address == f"hf:me/earth@{model}"


def test_offline_mode_takes_the_cached_commit_silently(hub, model, monkeypatch, recwarn):
    find_model("hf:me/earth")
    hub.requests.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert find_model("hf:me/earth").address == f"hf:me/earth@{model}"
    assert not hub.requests
    assert not recwarn.list
    refuses("is not in the cache, and HF_HUB_OFFLINE is set: unset it", "me/other")


def test_without_a_network_and_a_copy_it_says_so(hub, model):
    hub.close()
    refuses(r"the hub is not reachable \(http://127.0.0.1:\d+, \w+\), and the model is not in the cache: check the")


def test_what_the_hub_does_not_have(hub, model):
    refuses("no such model on the hub, or a private one: check the name; for a private one log in with", "me/eart")
    refuses("the hub has no such revision", "me/earth@v9")
    refuses("the hub has no such revision", f"me/earth@{'0' * 40}")


def test_private_and_gated_models_need_a_token_which_no_message_holds(hub, monkeypatch):
    hub.add("me/secret", FILES, private=True)
    hub.add("me/gated", FILES, gated=True)
    refuses("no such model on the hub, or a private one", "me/secret")
    refuses("is gated: accept its conditions on", "me/gated")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("me/secret", "me/gated"):
        assert TOKEN not in find_model(f"hf:{name}").address


def test_files_with_other_hashes_are_refused_and_removed(hub, model):
    hub.faults.add("wrong")
    refuses(
        "another hash for model.safetensors and recipe.toml than the files have: they are removed from the cache; run"
    )
    hub.faults.clear()
    assert find_model("hf:me/earth").address == f"hf:me/earth@{model}"


@pytest.mark.parametrize("name", ["model.safetensors", "recipe.toml"])
def test_a_cached_file_that_was_changed_is_refused_and_downloaded_again(hub, model, name):
    found = find_model("hf:me/earth")
    (found.folder / name).resolve().write_bytes(b"other")
    refuses(f"the hub states another hash for {name} than", f"me/earth@{model}")
    assert (find_model(found.address).folder / name).read_bytes() == FILES[name]


def test_a_truncated_download_is_not_used(hub, model, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)  # huggingface_hub tries five times
    hub.faults.add("short")
    with pytest.raises(UserError, match=r"^hf:me/earth: (the download is incomplete|the hub is not reachable)"):
        find_model("hf:me/earth")
    hub.faults.clear()
    assert find_model("hf:me/earth").address == f"hf:me/earth@{model}"


def test_a_revision_that_moves_all_the_time_is_given_up(hub, model):
    hub.faults.add("moving")
    refuses("its revision changes faster than it is downloaded: give a commit behind @")


def test_pickles_and_other_files_are_refused_before_a_download(hub):
    hub.add("me/pickled", {"pytorch_model.bin": b"x", "README.md": b""})
    hub.add("me/split", {"model-00001-of-2.safetensors": b"x"})
    hub.add("me/empty", {"README.md": b""})
    refuses(r"has its weights in a pickle \(pytorch_model.bin\), which can run code", "me/pickled")
    refuses(r"has no model.safetensors \(it has model-00001-of-2.safetensors\)", "me/split")
    refuses("has no model.safetensors: give a model that `p2pzoo card` wrote", "me/empty")
    assert not any("/resolve/" in request for request in hub.requests)


def test_huge_files_are_refused_before_a_download(hub, model):
    hub.faults.add("size")
    refuses("its model.safetensors has 1,000.0 GB, more than 17.2 GB: download it yourself, and give the file")
    assert not any("/resolve/" in request for request in hub.requests)


@pytest.mark.parametrize(
    "name",
    ["earth", "", "me/earth/x", "../earth", "me/..", "me/a..b", "me/earth@", "me/earth@../x", "@main",
     "me/earth@a b", "me/é", "me/earth@-x"],
)  # fmt: skip
def test_odd_names_are_refused_without_a_request(hub, name):
    with pytest.raises(UserError, match=re.escape(f"hf:{name}: '")):
        find_model(f"hf:{name}")
    assert hub.requests == []


def test_weights_of_other_programs_are_refused_as_a_file_is(hub):
    from safetensors.torch import save
    from torch import zeros

    hub.add("me/other", {"model.safetensors": save({"a": zeros(1)})})
    with pytest.raises(UserError, match=r"model\.safetensors"):
        p2pzoo.load("hf:me/other", device="cpu")


def test_the_endpoint_of_the_environment_is_asked_without_torch(hub, model, tmp_path):
    code = (
        "import sys; from p2pzoo.plugin.model_source import find_model; print(find_model('hf:me/earth').address); "
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"hf:me/earth@{model}\n"), done.stderr
    assert (tmp_path / "home" / "hub").is_dir()


class TestCommands:
    def test_translate_takes_a_name_and_exits_with_2_for_a_wrong_one(self, hub, model, run_cli, tmp_path):
        arguments = [EARTH / "example.png", "-o", tmp_path / "out.png", "--device", "cpu"]
        result = run_cli("translate", "hf:me/earth", *arguments)
        assert result.exit_code == 0, result.output
        result = run_cli("translate", "hf:me/eart", *arguments, "--force")
        assert result.exit_code == 2
        assert result.output.startswith("hf:me/eart: no such model on the hub")
        assert len(result.output.splitlines()) == 1

    def test_a_recipe_starts_from_a_name(self, hub, model, run, tmp_path):
        result = run(tmp_path / "runs", "init.generator=hf:me/eart")
        assert result.exit_code == 2
        assert 'generator = "hf:me/eart": hf:me/eart: no such model on the hub' in result.output
