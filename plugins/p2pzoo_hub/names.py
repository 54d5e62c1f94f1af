"""Names of repositories, and the errors of huggingface_hub as one line each. No message holds a token."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from p2pzoo.utils.errors import UserError

_PART = r"[A-Za-z0-9](?:[\w.-]*[\w])?"  # of OWNER/NAME; the hub allows no other characters
_REVISION = r"[\w](?:[\w./-]*[\w])?"  # a branch, a tag, a commit, or refs/pr/N
_COMMIT = "[0-9a-f]{40}"
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
_NETWORK_MODULES = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # versions of huggingface_hub use several
_MAX_REASON = 120  # characters of another program's message


@dataclass(frozen=True)
class RepoName:
    """OWNER/NAME and the revision. revision: None for the main branch."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, where: str) -> Self:
        """From OWNER/NAME or OWNER/NAME@REVISION. where: the whole argument, for messages. Raises UserError.

        >>> RepoName.parse("cmp/facades@v1", "hf:cmp/facades@v1")
        RepoName(repo='cmp/facades', revision='v1')
        """
        repo, at, revision = text.partition("@")
        if not re.fullmatch(f"{_PART}/{_PART}", repo, re.ASCII) or ".." in repo or "--" in repo:
            raise UserError(f"{where}: '{repo}' is no name on the hub: write OWNER/NAME (letters, digits, -, _, .)")
        if at and (not re.fullmatch(_REVISION, revision, re.ASCII) or ".." in revision or "//" in revision):
            raise UserError(f"{where}: '{revision}' is no revision: write a branch, a tag or a commit behind @")
        return cls(repo, revision or None)

    @property
    def is_exact(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return bool(re.fullmatch(_COMMIT, self.revision or ""))


@contextlib.contextmanager
def hub_errors(where: str, *, kind: str = "model") -> Iterator[None]:
    """Errors of huggingface_hub inside become UserErrors of one line. where: what the user asked for; kind: of it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        line = next((line for each in _causes(error) if (line := _describe(each, kind))), None)
        if line is None:
            raise
        raise UserError(f"{where}: {line}") from error


@contextlib.contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """Inside, huggingface_hub draws no progress bars into files and pipes."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def is_unreachable(error: BaseException) -> bool:
    """Whether there was no answer: no network, a server that is down, or offline mode."""
    from huggingface_hub.utils import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return True
    if isinstance(error, HfHubHTTPError):
        return _status(error) >= 500
    modules = {base.__module__.partition(".")[0] for base in type(error).__mro__}
    return bool(modules & {*_NETWORK_MODULES}) or isinstance(error, (ConnectionError, TimeoutError))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what it was raised from: uploads wrap theirs."""
    for _ in range(8):
        if error is None:
            return
        yield error
        error = error.__cause__


def _describe(error: BaseException, kind: str) -> str | None:
    """What happened and what to do; None for an error that is none of the hub."""
    from huggingface_hub import constants
    from huggingface_hub.utils import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and this needs the hub: unset it"
    if isinstance(error, GatedRepoError):
        return f"is gated: accept its conditions on {constants.ENDPOINT}, and {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"no such {kind} on the hub, or a private one: check the name; for a private one {LOGIN}"
    if isinstance(error, RevisionNotFoundError):
        return "the hub has no such revision (any more): give a branch, a tag or a commit that its page lists"
    if isinstance(error, HfHubHTTPError) and _status(error) in (401, 403):
        return f"the hub refuses this (status {_status(error)}): {LOGIN} to a token that may do it"
    if isinstance(error, HfHubHTTPError) and _status(error) < 500:
        reason = getattr(error, "server_message", None) or str(error)
        return f"the hub refuses this (status {_status(error)}): {_shorten(reason)}"
    if is_unreachable(error):
        return f"the hub is not reachable ({constants.ENDPOINT}: {_shorten(str(error))}): check the network, try again"
    if isinstance(error, ValueError) and "README.md" in str(error):  # the hub reads the metadata of a card
        return f"the hub refuses the metadata of README.md: {_shorten(str(error))}"
    if isinstance(error, OSError) and "onsistency check" in str(error):
        return "the download is incomplete: run the command again"
    return None


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _shorten(text: str) -> str:
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    return line if len(line) <= _MAX_REASON else f"{line[: _MAX_REASON - 1]}…"
