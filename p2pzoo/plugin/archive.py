"""Where the files of a published dataset can be downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from p2pzoo.utils.paths import cache_dir


@dataclass(frozen=True)
class Archive:
    """A tar file, compressed or not, with folders of images: `p2pzoo data fetch` downloads and extracts it.

    name          name of its folder in the cache. A single folder at the top of the archive is left out
    url           http or https address; a mirror has a file of the same name
    images        number of image files by folder of the archive: {"train": 400, ...}
    licence       licence and terms of use, in one line
    size          exact length in bytes; None if it was never published
    about         approximate length as text, for an unknown `size`: "2.0 GB"
    registration  terms that users must accept before they download, and where to accept them. `p2pzoo data fetch` then
                  asks for a confirmation
    """

    name: str
    url: str
    images: Mapping[str, int]
    licence: str
    size: int | None = None
    about: str = ""
    registration: str = ""

    @property
    def folder(self) -> Path:
        """The folder that `p2pzoo data fetch` extracts it to."""
        return cache_dir() / "datasets" / self.name

    @property
    def digests_file(self) -> Path:
        """Sizes and SHA-256 of the files in `folder` as they were fetched (`p2pzoo.utils.file_digests`)."""
        return self.folder.with_name(f"{self.name}.files.json")

    @property
    def length(self) -> str:
        """The length as text."""
        return self.about if self.size is None else f"{self.size:,} bytes"
