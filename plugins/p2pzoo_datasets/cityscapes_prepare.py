"""Cityscapes' own archives -> the 256 px pairs of pix2pix, with the class maps at full resolution beside them.

The pairs are those of the PyTorch code's script (junyanz, datasets/prepare_cityscapes_dataset.py): each image scaled
to 256 × 256 by Pillow's resize, photo on the left, label colours on the right, JPEG of quality 100 without subsampling.
They keep their frames' names where that script counts, so that a translation can be scored by its frame's labels.

    OUT/train/FRAME.jpg         512 × 256 px
    OUT/val/FRAME.jpg
    OUT/labels/train/FRAME.png  2048 × 1024 px, the 19 scored classes as 0 to 18, all else 255
    OUT/labels/val/FRAME.png
    OUT/prepared.json           what was made, and how
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

from p2pzoo.images.io import UNREADABLE, read_header, write_png
from p2pzoo.plugin import ProgressBar
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.files import atomic_write, write_json
from p2pzoo_datasets.cityscapes_classes import CLASSES, IGNORED, TRAIN_ID

SPLITS = ("train", "val")  # the labels of test were never published
SIDE = 256
FULL = (2048, 1024)  # width and height of Cityscapes' frames
ENDS = {".jpg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}  # of a file that was written to its end
FEW = 3
FORMAT = 1  # of prepared.json and of all that it tells of


@dataclass(frozen=True)
class Files:
    """The files of one kind, in a folder or a zip.

    suffix  what follows the frame's name
    names   {split: {frame: what `read` takes}}
    read    the bytes of one file
    """

    suffix: str
    names: Mapping[str, Mapping[str, str]]
    read: Callable[[str], bytes]

    def image(self, split: str, frame: str) -> Image.Image:
        """Decoded. Raises UserError, naming the file, where that fails or the size is not Cityscapes'."""
        name = self.names[split][frame]
        try:
            image = Image.open(io.BytesIO(self.read(name)))
            image.load()
        except (*UNREADABLE, zipfile.BadZipFile) as error:
            raise UserError(f"{name}: cannot be read as an image ({error}): get the archive again") from None
        if image.size != FULL:
            told = f"{image.size[0]}×{image.size[1]} px, where Cityscapes' frames have {FULL[0]}×{FULL[1]}"
            raise UserError(f"{name}: {told}; labels are kept at that size for scoring, so give the original files")
        return image


def prepare(out: Path, track: ProgressBar, leftimg8bit: Path, gtfine: Path) -> list[str]:
    """Make the pairs and class maps that `out` lacks; returns what to tell of it, a line each.

    leftimg8bit, gtfine: the archives' folders or the zips themselves, which are read where they are. Raises UserError
    where they hold no frames, a file is broken or of another size, or `out` holds other JPEGs.
    """
    photos = _files(leftimg8bit, "leftImg8bit", "leftImg8bit")
    colours, labels = (_files(gtfine, "gtFine", f"gtFine_{kind}") for kind in ("color", "labelIds"))
    parts = (photos, colours, labels)
    pairs, lines = {}, []
    for split in SPLITS:
        every = sorted(set().union(*(part.names[split] for part in parts)))
        pairs[split] = [frame for frame in every if all(frame in part.names[split] for part in parts)]
        lines += [told for part in parts if (told := _missing(split, part, every))]
        _refuse_others(out / split, pairs[split])
    if not any(pairs.values()):
        raise UserError(f"no frame of {leftimg8bit} has its labels in {gtfine}: do they belong together?")

    for split, frames in pairs.items():
        for folder in (out / split, out / "labels" / split):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*.tmp"):  # by a process that was killed
                left.unlink()
        todo = [frame for frame in frames if not _there(out, split, frame)]
        _ = list(track(_each(todo, lambda frame, split=split: _make(out, split, frame, *parts)), len(todo), split))
        kept = f", {len(frames) - len(todo)} of them there already" if len(todo) < len(frames) else ""
        lines.append(f"{out / split}: {_counted(len(frames), 'pair')}{kept}")
    made = {
        "format": FORMAT,
        "size": [SIDE, SIDE],
        "scaled": "bicubic, antialiased, as Pillow's resize",
        "labels": {"size": [*FULL[::-1]], "classes": CLASSES, "ignored": IGNORED},
        "pairs": pairs,
    }
    write_json(out / "prepared.json", made)
    return lines


def _make(out: Path, split: str, frame: str, photos: Files, colours: Files, labels: Files) -> None:
    """The class map first: a pair that is there always has its own."""
    class_map = np.asarray(labels.image(split, frame))
    if class_map.ndim != 2 or class_map.dtype != np.uint8:
        raise UserError(f"{labels.names[split][frame]}: no 8-bit label numbers; get the archive again")
    write_png(out / "labels" / split / f"{frame}.png", TRAIN_ID[class_map][..., None])

    pair = Image.new("RGB", (2 * SIDE, SIDE))
    for left, part in ((0, photos), (SIDE, colours)):
        scaled = part.image(split, frame).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        pair.paste(scaled, (left, 0))
    with atomic_write(out / split / f"{frame}.jpg") as temporary:
        pair.save(temporary, "JPEG", quality=100, subsampling=0)


def _each(items: list[str], act: Callable[[str], None]) -> Iterator[None]:
    """Pillow and zlib let threads run side by side. The first error is raised, and what was not begun is left."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        doing = [threads.submit(act, item) for item in items]
        try:
            for each in doing:
                yield each.result()
        finally:
            threads.shutdown(cancel_futures=True)


# --- what is there ---------------------------------------------------------------------------------------------


def _files(source: Path, folder: str, suffix: str) -> Files:
    """Those named SPLIT/CITY/FRAME_suffix.png, in a folder, in its sub-folder of that name, or in a zip."""
    if source.is_dir():
        base = next((b for b in (source, source / folder, *source.glob(f"*/{folder}")) if _has_splits(b)), source)
        listed: Iterable[str] = (str(p) for s in SPLITS for p in (base / s).glob(f"*/*_{suffix}.png"))
        files = Files(suffix, _by_frame(listed, suffix), lambda name: Path(name).read_bytes())
    elif zipfile.is_zipfile(source):
        archive = zipfile.ZipFile(source)  # nothing is extracted: names lead nowhere
        files = Files(suffix, _by_frame(archive.namelist(), suffix), archive.read)
    else:
        what = "is no folder and no zip" if source.exists() else "no such folder or zip"
        raise UserError(f"{source}: {what}; give {folder}_trainvaltest.zip of Cityscapes, or the folder it extracts to")
    if not any(files.names.values()):
        raise UserError(f"{source}: has no {{train,val}}/CITY/*_{suffix}.png: is it another archive?")
    return files


def _has_splits(folder: Path) -> bool:
    return any((folder / split).is_dir() for split in SPLITS)


def _by_frame(names: Iterable[str], suffix: str) -> dict[str, dict[str, str]]:
    pattern = re.compile(rf"(?:.*[/\\])?({'|'.join(SPLITS)})[/\\][^/\\]+[/\\]([^/\\.][^/\\]*)_{suffix}\.png")
    found: dict[str, dict[str, str]] = {split: {} for split in SPLITS}
    for name in names:
        if match := pattern.fullmatch(name):
            found[match[1]][match[2]] = name
    return found


def _missing(split: str, part: Files, every: list[str]) -> str | None:
    """What to tell of the frames that one kind of file is missing for."""
    missing = [frame for frame in every if frame not in part.names[split]]
    if not missing:
        return None
    few = ", ".join([*missing[:FEW], *(["..."] if len(missing) > FEW else [])])
    return f"{split}: {_counted(len(missing), 'frame')} left out for want of *_{part.suffix}.png ({few})"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _refuse_others(folder: Path, frames: list[str]) -> None:
    others = sorted({path.stem for path in folder.glob("*.jpg")} - set(frames))
    if others:
        told = f"holds {_counted(len(others), 'other JPEG')}, as {others[0]}.jpg, which would be read as pairs too"
        raise UserError(f"{folder}: {told}: move them away, or choose another folder with -o")


def _there(out: Path, split: str, frame: str) -> bool:
    """Whether a frame's pair and class map are there, of the right sizes and written to their ends."""
    pair, labels = out / split / f"{frame}.jpg", out / "labels" / split / f"{frame}.png"
    return _whole(pair, (SIDE, 2 * SIDE)) and _whole(labels, FULL[::-1])


def _whole(file: Path, size: tuple[int, ...]) -> bool:
    end = ENDS[file.suffix]
    try:
        with file.open("rb") as stream:
            stream.seek(-len(end), os.SEEK_END)
            return stream.read() == end and read_header(file)[:2] == size
    except (OSError, UserError):
        return False
