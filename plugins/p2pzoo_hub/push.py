"""Upload files to the hub in one commit: a model card with its model, or a static Space.

The token is that of huggingface_hub's own login. It is never printed or stored here.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from p2pzoo.utils.errors import UserError
from p2pzoo.utils.version import __version__
from p2pzoo_hub.names import LOGIN, RepoName, bars_on_terminals_only, hub_errors

Kind = Literal["model", "space"]


@dataclass(frozen=True)
class Target:
    """Where to upload to.

    name      OWNER/NAME
    kind      "model" or "space"
    private   whether a new repository is private, and an existing one must be
    revision  branch, created from the main one if it does not exist; None: the main branch
    """

    name: str
    kind: Kind = "model"
    private: bool = False
    revision: str | None = None

    def check(self) -> None:
        """Raises UserError for a wrong name, in offline mode and without a login. It sends nothing."""
        from huggingface_hub import constants, get_token

        if RepoName.parse(self.name, f"--push {self.name}").revision:
            raise UserError(f"--push {self.name}: give the branch with --revision")
        if self.revision is not None:
            RepoName.parse(f"{self.name}@{self.revision}", f"--revision {self.revision}")
        if constants.HF_HUB_OFFLINE:
            raise UserError(f"--push {self.name}: HF_HUB_OFFLINE is set: unset it to upload")
        if get_token() is None:
            raise UserError(f"--push {self.name}: needs a login: {LOGIN} to a token that may write")


def push_files(files: Sequence[Path], target: Target, message: str, *, owned: Collection[str] = ()) -> str:
    """Upload files in one commit, by their names; return the address of the repository's page.

    A repository that does not exist is created. Other files of an existing one stay.

    message  of the commit
    owned    names that belong to what is uploaded: those that `files` does not have are removed from the repository

    Raises UserError if the hub refuses it, or if `private` and the repository is public.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    target.check()
    api = HfApi(library_name="p2pzoo", library_version=__version__)
    with hub_errors(f"--push {target.name}", kind=target.kind), bars_on_terminals_only():
        sdk = {"space_sdk": "static"} if target.kind == "space" else {}
        page = api.create_repo(target.name, repo_type=target.kind, private=target.private or None, exist_ok=True, **sdk)
        if target.private and not api.repo_info(target.name, repo_type=target.kind).private:
            raise UserError(
                f"--private: {target.name} exists and is public: make it private in its settings ({page}), or give "
                "another name"
            )
        if target.revision:
            api.create_branch(target.name, branch=target.revision, repo_type=target.kind, exist_ok=True)
        old = api.list_repo_files(target.name, repo_type=target.kind, revision=target.revision)
        removed = sorted({*old} & {*owned} - {file.name for file in files})
        api.create_commit(
            target.name,
            [
                *(CommitOperationAdd(file.name, str(file)) for file in files),
                *(CommitOperationDelete(name) for name in removed),
            ],
            commit_message=message,
            repo_type=target.kind,
            revision=target.revision,
        )
    return f"{page}/tree/{target.revision}" if target.revision else str(page)
