"""A hub on the loopback interface in place of the real one, with an empty cache."""

import hub_server
import pytest


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A HubServer; huggingface_hub asks it alone, caches in a folder of the test, and has no token."""
    from huggingface_hub import constants

    server = hub_server.HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    yield server
    server.close()
