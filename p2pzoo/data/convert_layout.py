"""Converts between two folders of images and images side by side. Source folders are never changed. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p2pzoo.data.pairing import Files, count_images, find_pairs, format_size, halves, odd_widths, read_headers, stem_of
from p2pzoo.images.find_images import find_images
from p2pzoo.images.georeference import warn_of_losses
from p2pzoo.images.io import ImageHeader, read_image, with_channels, write_png
from p2pzoo.images.orientation import DIFFERENT_ORIENTATIONS, TURNED_HALVES, describe_differences, describe_turned
from p2pzoo.utils.errors import UserError, raise_faults, summarize_fault


def combine_folders(a: Path, b: Path, out: Path, *, force: bool = False) -> int:
    """Two folders -> A|B side by side, as PNGs in `out`; sub-folders are kept. Returns the number of files written.

    The images of a pair must have one size. Where one is grey and the other in colour, or only one has an alpha
    channel, the result has colours and alpha, and every pixel looks the same.

    Raises UserError as `find_pairs` does, where sizes differ or a file cannot be read, where `out` is inside a or b,
    and where a file would be overwritten (unless `force`). All this is checked before anything is written, except for
    truncated files, which are noticed when they are decoded.
    """
    pairs = find_pairs(a, b)
    _refuse_inside([out / sub for sub in pairs], [a, b], pairs)
    headers = _headers_of_bytes(file for files in _all_files(pairs) for file in files)
    shapes = {file: header.shape for file, header in headers.items()}
    each = ((files, [headers[file] for file in files]) for files in _all_files(pairs))
    raise_faults(summarize_fault(DIFFERENT_ORIENTATIONS, describe_differences(each)))
    raise_faults(
        summarize_fault(
            "the two images of a pair must have the same size:",
            (
                f"{left} is {format_size(*shapes[left][:2])}, {right} is {format_size(*shapes[right][:2])}"
                for left, right in _all_files(pairs)
                if shapes[left][:2] != shapes[right][:2]
            ),
        )
    )
    _refuse_overwriting([(out / sub, stem) for sub, stems in pairs.items() for stem in stems], force)
    for sub, stems in pairs.items():
        _make_folder(out / sub)
        for stem, files in stems.items():
            write_png(out / sub / f"{stem}.png", side_by_side(*map(read_image, files)))
    return len(list(_all_files(pairs)))


def split_folder(ab: Path, out: Path, *, force: bool = False) -> int:
    """A|B side by side -> PNGs in out/A and out/B; sub-folders are kept. Returns the number of pairs written.

    The halves keep the channels of the file. Raises UserError as `combine_folders` does; widths must be even.
    """
    pairs = find_pairs(ab)
    sides = [out / "A", out / "B"]
    _refuse_inside([side / sub for side in sides for sub in pairs], [ab], pairs)
    headers = _headers_of_bytes(file for files in _all_files(pairs) for file in files)
    shapes = {file: header.shape for file, header in headers.items()}
    raise_faults(summarize_fault(TURNED_HALVES, describe_turned(headers)))
    raise_faults(odd_widths({file: shapes[file] for (file,) in _all_files(pairs)}))
    _refuse_overwriting([(side / sub, stem) for side in sides for sub, stems in pairs.items() for stem in stems], force)
    for sub, stems in pairs.items():
        for side in sides:
            _make_folder(side / sub)
        for stem, (file,) in stems.items():
            for side, half in zip(sides, halves(read_image(file)), strict=True):
                write_png(side / sub / f"{stem}.png", half)
    return len(list(_all_files(pairs)))


def side_by_side(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two (H, W, C) uint8 images of one size -> (H, 2W, C), in the fewest channels that hold both."""
    counts = {a.shape[2], b.shape[2]}
    channels = (3 if counts & {3, 4} else 1) + bool(counts & {2, 4})
    return np.concatenate([with_channels(a, channels), with_channels(b, channels)], axis=1)


def _headers_of_bytes(files: Iterable[Path]) -> dict[Path, ImageHeader]:
    """The header of every file. Warns of georeferences, which PNGs lose.

    Raises UserError as `read_headers` does, and for more than 8 bits or 4 channels.
    """
    headers = read_headers(files)
    warn_of_losses((file, file.with_suffix(".png")) for file in headers)
    deep = (f"{file}: {header.dtype}" for file, header in headers.items() if header.dtype != "uint8")
    raise_faults(
        summarize_fault("images side by side must have 8 bits per channel, as they are PNGs; these have more:", deep)
    )
    wide = (f"{file}: {header.shape[2]} channels" for file, header in headers.items() if header.shape[2] > 4)
    raise_faults(
        summarize_fault("images side by side must have 1 to 4 channels, as they are PNGs; these have more:", wide)
    )
    return headers


def _refuse_inside(outs: Sequence[Path], roots: Sequence[Path], pairs: Mapping[str, Mapping[str, Files]]) -> None:
    """Raises UserError where an output folder is inside a source folder. Links are followed, in sub-folders too."""
    parents = dict.fromkeys(file.parent for files in _all_files(pairs) for file in files)
    for out in outs:
        for source in (*roots, *parents):
            if out.resolve() == source.resolve():
                raise UserError(f"{out}: is a folder that is only read: choose another folder with -o")
            if out.resolve().is_relative_to(source.resolve()):
                raise UserError(f"{out}: is inside {source}, which is only read: choose another folder with -o")


def _refuse_overwriting(planned: Iterable[tuple[Path, str]], force: bool) -> None:
    """Raises UserError where files of the same stem exist, which would be overwritten or be a second such pair.

    planned  folder and stem of each PNG to write
    """
    planned = list(planned)
    existing: dict[tuple[Path, str], list[Path]] = {}
    for folder in {folder for folder, _ in planned}:
        for file in find_images(folder) if folder.is_dir() else []:
            existing.setdefault((folder, stem_of(file)), []).append(file)
    clashes = [str(file) for target in planned for file in existing.get(target, [])]
    if force:
        others = [file for file in clashes if not file.endswith(".png")]
        raise_faults(summarize_fault("PNGs of the same name would be written next to these: remove them first", others))
    else:
        raise_faults(
            summarize_fault(
                f"{count_images(clashes)} with the same name in the output folder: --force replaces them", clashes
            )
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(
            f"{folder}: cannot be created, because a file has this name: choose another folder with -o"
        ) from None


def _all_files(pairs: Mapping[str, Mapping[str, Files]]) -> Iterable[Files]:
    return (files for stems in pairs.values() for files in stems.values())
