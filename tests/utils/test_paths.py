"""The user's cache follows the environment; shipped folders exist."""

from pathlib import Path

import pytest

from p2pzoo.utils.launcher import is_follower, is_launched
from p2pzoo.utils.paths import cache_dir, shipped_dir


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"P2PZOO_CACHE": "/mine", "XDG_CACHE_HOME": "/xdg"}, Path("/mine")),
        ({"XDG_CACHE_HOME": "/xdg"}, Path("/xdg/p2pzoo")),
        ({"XDG_CACHE_HOME": ""}, Path.home() / ".cache" / "p2pzoo"),
    ],
)
def test_the_cache_is_where_the_environment_says(environment, expected, monkeypatch):
    for name in ("P2PZOO_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == expected


def test_shipped_folders_exist():
    assert (shipped_dir("recipes") / "base.toml").is_file()
    assert shipped_dir("benchmarks").is_dir()


@pytest.mark.parametrize(
    ("environment", "launched", "follower"),
    [
        ({}, False, False),
        ({"WORLD_SIZE": "1", "RANK": "0"}, False, False),
        ({"WORLD_SIZE": "2", "RANK": "0"}, True, False),
        ({"WORLD_SIZE": "2", "RANK": "1"}, True, True),
    ],
)
def test_a_process_knows_its_rank(environment, launched, follower, monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (is_launched(), is_follower()) == (launched, follower)
