"""Where a published dataset can be downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from p2pzoo.utils.paths import cache_dir

if TYPE_CHECKING:
    from torch import Tensor

    Both = tuple[list[Tensor], list[Tensor]]  # D's maps of real, and of fake images


@dataclass(frozen=True)
class Archive:
    """Where a dataset is published: a tar file, compressed or not, of folders of images.

    name          of the folder in the cache that it is extracted to; its own one top folder is left out
    url           http or https; a mirror has a file of the same name
    images        how many image files there are, by their folder in it: {"train": 400, ...}
    licence       what to know of it, in one line
    size          its exact length in bytes; None where that was never told
    about         its length for people, where `size` is None: "2.0 GB"
    registration  where its terms ask to be accepted before: what they are and where. It is then fetched only by
                  those who say that they have
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
        """Where `p2pzoo data fetch` puts it."""
        return cache_dir() / "datasets" / self.name

    @property
    def length(self) -> str:
        """Its length for people."""
        return self.about if self.size is None else f"{self.size:,} bytes"
