"""From Cityscapes' original archives to the 256 px pairs of pix2pix, with class maps at full resolution.

The pairs equal those of the PyTorch code's script (junyanz, datasets/prepare_cityscapes_dataset.py): each image scaled
to 256 × 256 by Pillow's resize, photo on the left, label colours on the right, JPEG of quality 100 without subsampling.
That script numbers the pairs. Here they keep the names of their frames, so that a translation can be scored with the
labels of its frame.

    OUT/train/FRAME.jpg         512 × 256 px
    OUT/val/FRAME.jpg
    OUT/labels/train/FRAME.png  2048 × 1024 px, the 19 scored classes as 0 to 18, all others 255
    OUT/labels/val/FRAME.png
    OUT/prepared.json           the pairs, their size, and the classes
"""

from __future__ import annotations

import io
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from p2pzoo.images.io import PILLOW_ERRORS, read_header, write_png
from p2pzoo.plugin import ProgressBar
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, write_json
from p2pzoo.utils.plurals import format_count
from p2pzoo_datasets.cityscapes_classes import CLASSES, IGNORED, TRAIN_ID

SPLITS = ("train", "val")  # the labels of test were never published
SIDE = 256  # px, as in the paper
FRAME_SIZE = (2048, 1024)  # width and height of Cityscapes' frames
END_OF_FILE = {".jpg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}  # the last bytes of a complete file
MAX_NAMED_FRAMES = 3  # in a message: enough to find the others
FORMAT = 1  # version of prepared.json and of the files that it describes
MAX_THREADS = 8  # bounds the memory: each thread holds decoded frames of 2048 × 1024 px


@dataclass(frozen=True)
class FrameFiles:
    """The files of one kind, in a folder or a zip.

    suffix  end of the file name, after the frame's name
    names   {split: {frame: name of its file}}
    read    returns the bytes of a file by its name
    """

    suffix: str
    names: Mapping[str, Mapping[str, str]]
    read: Callable[[str], bytes]

    def image(self, split: str, frame: str) -> Image.Image:
        """The decoded file. Raises UserError, naming the file, if it cannot be decoded or has another size."""
        name = self.names[split][frame]
        try:
            image = Image.open(io.BytesIO(self.read(name)))
            image.load()
        except (*PILLOW_ERRORS, zipfile.BadZipFile) as error:
            raise UserError(f"{name}: cannot be read as an image ({error}): download the archive again") from None
        if image.size != FRAME_SIZE:
            raise UserError(
                f"{name}: is {image.size[0]}×{image.size[1]} px, frames of Cityscapes are "
                f"{FRAME_SIZE[0]}×{FRAME_SIZE[1]} px: use the original files, scoring needs labels of that size"
            )
        return image


def prepare(out: Path, track: ProgressBar, leftimg8bit: Path, gtfine: Path) -> list[str]:
    """Make the pairs and class maps that `out` does not have yet; returns a report, line by line.

    leftimg8bit  folder of the photos, or their zip, which is not extracted
    gtfine       folder of the labels, or their zip

    Raises UserError if they have no frames, a file is broken or has another size, or `out` contains other JPEGs.
    """
    photos = _find_files(leftimg8bit, "leftImg8bit", "leftImg8bit")
    colours, labels = (_find_files(gtfine, "gtFine", f"gtFine_{kind}") for kind in ("color", "labelIds"))
    parts = (photos, colours, labels)
    pairs, lines = {}, []
    for split in SPLITS:
        frames = sorted(set().union(*(part.names[split] for part in parts)))
        pairs[split] = [frame for frame in frames if all(frame in part.names[split] for part in parts)]
        lines += [line for part in parts if (line := _describe_missing(split, part, frames))]
        _refuse_others(out / split, pairs[split])
    if not any(pairs.values()):
        raise UserError(f"no frame of {leftimg8bit} has labels in {gtfine}: do they belong together?")

    for split, frames in pairs.items():
        for folder in (out / split, out / "labels" / split):
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed
                leftover.unlink()
        todo = [frame for frame in frames if not _is_prepared(out, split, frame)]
        written = _map_in_threads(todo, lambda frame, split=split: _write_pair(out, split, frame, *parts))
        for _ in track(written, len(todo), split):
            pass
        kept = f", {len(frames) - len(todo)} of them existed already" if len(todo) < len(frames) else ""
        lines.append(f"{out / split}: {format_count(len(frames), 'pair')}{kept}")
    manifest = {
        "format": FORMAT,
        "size": [SIDE, SIDE],
        "scaled": "bicubic, antialiased, as Pillow's resize",
        "labels": {"size": [*FRAME_SIZE[::-1]], "classes": CLASSES, "ignored": IGNORED},
        "pairs": pairs,
    }
    write_json(out / "prepared.json", manifest)
    return lines


def _write_pair(out: Path, split: str, frame: str, photos: FrameFiles, colours: FrameFiles, labels: FrameFiles) -> None:
    # The class map first: then every pair that exists has its class map.
    class_map = np.asarray(labels.image(split, frame))
    if class_map.ndim != 2 or class_map.dtype != np.uint8:
        raise UserError(f"{labels.names[split][frame]}: is no 8-bit map of label numbers: download the archive again")
    write_png(out / "labels" / split / f"{frame}.png", TRAIN_ID[class_map][..., None])

    pair = Image.new("RGB", (2 * SIDE, SIDE))
    for left, part in ((0, photos), (SIDE, colours)):
        scaled = part.image(split, frame).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pair.paste(scaled, (left, 0))
    with atomic_write(out / split / f"{frame}.jpg") as temporary:
        pair.save(temporary, "JPEG", quality=100, subsampling=0)


def _map_in_threads(items: list[str], act: Callable[[str], None]) -> Iterator[None]:
    """Call `act` for each item in threads: Pillow and zlib release the GIL. The first error cancels what is waiting."""
    with ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1)) as threads:
        futures = [threads.submit(act, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        finally:
            threads.shutdown(cancel_futures=True)


# --- the files of archives and output -------------------------------------------------------------------------


def _find_files(source: Path, folder: str, suffix: str) -> FrameFiles:
    """The files SPLIT/CITY/FRAME_suffix.png of a folder, of its sub-folder `folder`, or of a zip."""
    if source.is_dir():
        base = next((b for b in (source, source / folder, *source.glob(f"*/{folder}")) if _has_splits(b)), source)
        names: Iterable[str] = (str(p) for s in SPLITS for p in (base / s).glob(f"*/*_{suffix}.png"))
        files = FrameFiles(suffix, _by_frame(names, suffix), lambda name: Path(name).read_bytes())
    elif zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)  # nothing is extracted, so names cannot write outside a folder
        files = FrameFiles(suffix, _by_frame(archive.namelist(), suffix), archive.read)
    else:
        fault = "is no folder and no zip" if source.exists() else "no such folder or zip"
        raise UserError(f"{source}: {fault}: name {folder}_trainvaltest.zip of Cityscapes, or its extracted folder")
    if not any(files.names.values()):
        raise UserError(f"{source}: has no {{train,val}}/CITY/*_{suffix}.png: is it another archive?")
    return files


def _has_splits(folder: Path) -> bool:
    return any((folder / split).is_dir() for split in SPLITS)


def _by_frame(names: Iterable[str], suffix: str) -> dict[str, dict[str, str]]:
    pattern = re.compile(rf"(?:.*[/\\])?({'|'.join(SPLITS)})[/\\][^/\\]+[/\\]([^/\\.][^/\\]*)_{suffix}\.png")
    by_frame: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for name in names:
        if match := pattern.fullmatch(name):
            by_frame[match[1]][match[2]] = name
    return by_frame


def _describe_missing(split: str, part: FrameFiles, frames: list[str]) -> str | None:
    """The report line on frames without this kind of file; None if there are none."""
    missing = [frame for frame in frames if frame not in part.names[split]]
    if not missing:
        return None
    names = ", ".join([*missing[:MAX_NAMED_FRAMES], *(["..."] if len(missing) > MAX_NAMED_FRAMES else [])])
    return f"{split}: {format_count(len(missing), 'frame')} skipped: *_{part.suffix}.png is missing ({names})"


def _refuse_others(folder: Path, frames: list[str]) -> None:
    others = sorted({path.stem for path in folder.glob("*.jpg")} - set(frames))
    if others:
        fault = (
            f"has {format_count(len(others), 'other JPEG')} ({others[0]}.jpg, ...), which would be read as pairs too"
        )
        raise UserError(f"{folder}: {fault}: move them away, or choose another folder with -o")


def _is_prepared(out: Path, split: str, frame: str) -> bool:
    """Whether a frame's pair and class map exist, have the right sizes and are complete."""
    pair, labels = out / split / f"{frame}.jpg", out / "labels" / split / f"{frame}.png"
    return _is_complete(pair, (SIDE, 2 * SIDE)) and _is_complete(labels, FRAME_SIZE[::-1])


def _is_complete(file: Path, size: tuple[int, ...]) -> bool:
    end = END_OF_FILE[file.suffix]
    try:
        with file.open("rb") as stream:
            stream.seek(-len(end), os.SEEK_END)
            return stream.read() == end and read_header(file)[:2] == size
    except (OSError, UserError):
        return False
