"""Models on the hub: `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`, in huggingface_hub's own cache.

Only model.safetensors and recipe.toml are downloaded: no pickle and no code. Before the download their sizes are
checked, after it their SHA-256, which the hub states for files of Git LFS, or their git hash, for small ones. A cached
file is checked against the hash that it is stored under.
"""

from __future__ import annotations

import functools
import hashlib
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pzoo.plugin import FoundModel
from p2pzoo.utils.errors import DamagedFile, UserError
from p2pzoo.utils.version import __version__
from p2pzoo_hub.names import RepoName, bars_on_terminals_only, hub_errors, is_unreachable

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

MODEL = "model.safetensors"
MAX_BYTES = {MODEL: 16 << 30, "recipe.toml": 1 << 20}  # the files that p2pzoo reads, and the most that they may have
_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_SHA1_DIGITS, _SHA256_DIGITS = 40, 64
_DIGEST = f"[0-9a-f]{{{_SHA1_DIGITS}}}|[0-9a-f]{{{_SHA256_DIGITS}}}"
_MAX_TRIES = 3  # a branch that moves between two requests


def find_on_hub(name: str) -> FoundModel:
    """The model OWNER/NAME[@REVISION]: the newest commit of the revision, downloaded unless it is cached.

    A cached commit needs no network. If the hub cannot be reached, the cached commit of the revision is taken, with a
    warning. Raises UserError if there is no such model or revision, if it is private, has no safetensors or is too
    large, and DamagedFile for a file that is not the one that the hub states.
    """
    where = f"hf:{name}"
    wanted = RepoName.parse(name, where)
    folder = _find_cached(wanted) if wanted.is_exact else None
    if folder is None:
        with hub_errors(where), bars_on_terminals_only():
            folder = _download(wanted, where)
    # a link in the cache leads to a file that is named after its hash; systems without links store none
    _check_files({file: file.resolve().name for file in _files_of(folder) if file.is_symlink()}, where)
    return FoundModel(folder, f"hf:{wanted.repo}@{folder.name}")


def _download(wanted: RepoName, where: str) -> Path:
    """The folder of the revision's newest commit, whose name is its hash."""
    from huggingface_hub import HfApi, constants, snapshot_download

    api = HfApi(library_name="p2pzoo", library_version=__version__)
    for _ in range(_MAX_TRIES):
        try:
            info = api.model_info(wanted.repo, revision=wanted.revision, files_metadata=True)
        except Exception as error:
            if not is_unreachable(error):
                raise
            if (folder := _find_cached(wanted)) is None:
                raise _not_cached(where, error) from error
            if not constants.HF_HUB_OFFLINE:
                warnings.warn(f"{where}: the hub is not reachable; the cached {folder.name[:12]} is used", stacklevel=4)
            return folder
        listed = {file.rfilename: file for file in info.siblings or ()}
        _check_listing(listed, where)
        folder = Path(
            snapshot_download(
                wanted.repo, revision=wanted.revision, allow_patterns=[*MAX_BYTES], library_name="p2pzoo",
                library_version=__version__,
            )
        )  # fmt: skip
        if folder.name == info.sha:
            _check_files({file: _stated_digest(listed[file.name]) for file in _files_of(folder)}, where)
            return folder
    raise UserError(f"{where}: its revision changes faster than it is downloaded: give a commit behind @")


def _files_of(folder: Path) -> list[Path]:
    """Those that p2pzoo reads: another program may have downloaded more of the repository."""
    return [folder / name for name in MAX_BYTES if (folder / name).is_file()]


def _not_cached(where: str, error: Exception) -> UserError:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return UserError(f"{where}: is not in the cache, and HF_HUB_OFFLINE is set: unset it to download the model")
    return UserError(
        f"{where}: the hub is not reachable ({constants.ENDPOINT}, {type(error).__name__}), and the model is not in "
        "the cache: check the network, try again"
    )


def _find_cached(wanted: RepoName) -> Path | None:
    """The folder of a revision as it was downloaded, complete; None if there is none. Uses no network."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            wanted.repo, revision=wanted.revision, allow_patterns=[*MAX_BYTES], local_files_only=True
        )
    except FileNotFoundError:  # of huggingface_hub: not in the cache, or only in part
        return None
    return Path(folder) if (Path(folder) / MODEL).is_file() else None


def _check_listing(listed: Mapping[str, RepoSibling], where: str) -> None:
    """Raises UserError for a repository without a model, and for files that are too large."""
    if MODEL not in listed:
        pickles = [name for name in sorted(listed) if name.endswith(_PICKLES)]
        others = [name for name in sorted(listed) if name.endswith(".safetensors")]
        if others:
            raise UserError(f"{where}: has no {MODEL} (it has {others[0]}): give a model that `p2pzoo card` wrote")
        if pickles:
            raise UserError(
                f"{where}: has its weights in a pickle ({pickles[0]}), which can run code, and no {MODEL}: download it "
                "yourself, and convert it with `p2pzoo import`"
            )
        raise UserError(f"{where}: has no {MODEL}: give a model that `p2pzoo card` wrote")
    for name, most in MAX_BYTES.items():
        size = listed[name].size if name in listed else None
        if size is not None and size > most:
            raise UserError(
                f"{where}: its {name} has {size / 1e9:,.1f} GB, more than {most / 1e9:,.3g} GB: download it yourself, "
                "and give the file"
            )


def _stated_digest(file: RepoSibling) -> str:
    """The SHA-256 of a file of Git LFS, else its git hash; "" if the server states none."""
    lfs: Any = file.lfs
    return str((lfs["sha256"] if isinstance(lfs, dict) else lfs.sha256) if lfs else file.blob_id or "")


def _check_files(digests: Mapping[Path, str], where: str) -> None:
    """Raises DamagedFile, and removes them from the cache, if files do not have these SHA-256 or git hashes.

    A digest of another length, as a mirror may state it, is not checked.
    """
    damaged = [
        file
        for file, digest in digests.items()
        if re.fullmatch(_DIGEST, digest) and _digest(file, file.stat().st_mtime_ns, len(digest)) != digest
    ]
    for file in damaged:
        file.resolve().unlink(missing_ok=True)
        file.unlink(missing_ok=True)
    if damaged:
        names = " and ".join(file.name for file in damaged)
        raise DamagedFile(
            f"{where}: the hub states another hash for {names} than the files have: they are removed from the cache; "
            "run the command again"
        )


@functools.lru_cache(maxsize=64)
def _digest(file: Path, _changed: int, digits: int) -> str:
    """The SHA-256 of a file, or its git hash for 40 digits. A file that changed is read again."""
    digest = hashlib.sha256() if digits == _SHA256_DIGITS else hashlib.sha1(usedforsecurity=False)
    if digits == _SHA1_DIGITS:
        digest.update(f"blob {file.stat().st_size}\0".encode())
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
