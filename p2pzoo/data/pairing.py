"""How pairs lie in folders, and the two conversions. Nothing here changes a folder that is read. Imports no torch.

two folders     inputs/001.jpg + targets/001.png: paired by the stem of their names
side by side    001.png: A is its left half, B its right one (the paper's archives)

Either may have the sub-folders train/, val/ and test/.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from p2pzoo.images.io import SUFFIXES, Header, find_images, inspect, read_image, with_channels, write_png
from p2pzoo.plugin.batch import Split
from p2pzoo.utils.errors import Fault, UserError

SPLITS: tuple[Split, ...] = ("train", "val", "test")
FEW = 3  # of the files with one fault, so many are named
Files = tuple[Path, ...]  # what makes one pair: a file of each folder
Shape = tuple[int, int, int]  # height, width, channels
Tell = Callable[[Sequence[str]], None]  # takes faults: raises them, or keeps them
Inspect = Callable[[Path], Header]


def find_pairs(*folders: Path, tell: Tell | None = None, nested: bool = False) -> dict[str, dict[str, Files]]:
    """{sub-folder: {stem: its file in each of the folders}}, by name.

    Sub-folders are those of train, val and test that there are, or "" where the images lie in the folders themselves.
    Other folders inside, hidden files and files of other kinds are left out. No file is opened.

    nested  those in folders inside are found too, however deep: the stem of a/b/001.jpg is then "a-b-001"

    Raises UserError where a folder is missing, unreadable, empty or nested in another way, where files of one folder
    share a stem, and where a file has no partner. The last two are told to `tell` instead, if it is given.
    """
    try:
        _refuse_missing(folders)
        subs = _sub_folders(folders)
        listed = {sub: [find_images(folder / sub, nested=nested) for folder in folders] for sub in subs}
        if faults := [
            _no_images(folder / sub, root=not sub)
            for sub, lists in listed.items()
            for folder, files in zip(folders, lists, strict=True)
            if not files
        ]:
            raise UserError(*faults)
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})") from None

    faults = []
    stems: dict[str, list[dict[str, Path]]] = {}
    for sub, lists in listed.items():
        stems[sub] = []
        for folder, files in zip((folder / sub for folder in folders), lists, strict=True):
            named = [(stem_of(file, folder), file) for file in files]
            stems[sub].append(dict(named))
            faults += filter(None, [_shared_stems(named, folder)])
    for sub, (first, *others) in stems.items():
        for other, folder in zip(others, folders[1:], strict=True):
            faults += _alone(first, other, folders[0] / sub, folder / sub)
    (tell or raise_any)(faults)
    common = {
        sub: [stem for stem in by_stem[0] if all(stem in one for one in by_stem)] for sub, by_stem in stems.items()
    }
    return {sub: {stem: tuple(one[stem] for one in stems[sub]) for stem in common[sub]} for sub in stems}


def stem_of(file: Path, folder: Path | None = None) -> str:
    """The name without its suffix, after those of the folders below `folder` that it lies in.

    In one spelling of accents, which file systems write in two ways.
    """
    inside = file.relative_to(folder).parts[:-1] if folder else ()
    return unicodedata.normalize("NFC", "-".join([*inside, file.stem]))


def headers(files: Iterable[Path], tell: Tell | None = None) -> dict[Path, Header]:
    """Every file's header, upright, without decoding a pixel. Raises UserError with those that cannot be used.

    Where `tell` is given they are told to it instead, and left out.
    """
    found = inspected(((file, inspect) for file in files), tell)
    return {file: header for (file, _), header in found.items()}


def inspected(files: Iterable[tuple[Path, Inspect]], tell: Tell | None = None) -> dict[tuple[Path, Inspect], Header]:
    """The same, of files that are read in different ways."""
    found, broken = {}, []
    for file, look in dict.fromkeys(files):
        try:
            found[file, look] = look(file)
        except UserError as error:
            broken.append(str(error))
    (tell or raise_any)(several(f"{_images(broken)} cannot be used:", broken))
    return found


def _shapes_of_bytes(files: Iterable[Path]) -> dict[Path, Shape]:
    """Every file's (H, W, C). Raises UserError as `headers` does, and with those of more than 8 bits a channel."""
    found = headers(files)
    deep = (f"{file}: {header.dtype}" for file, header in found.items() if header.dtype != "uint8")
    raise_any(several("side by side lie images of 8 bits a channel, as PNGs; these have more:", deep))
    wide = (f"{file}: {header.shape[2]} channels" for file, header in found.items() if header.shape[2] > 4)
    raise_any(several("side by side lie images of 1 to 4 channels, as PNGs; these have more:", wide))
    return {file: header.shape for file, header in found.items()}


def several(what: str, cases: Iterable[str]) -> list[str]:
    """One fault that several files have: what it is, and below it the first few. Empty where there is no case."""
    cases = list(cases)
    more = [f"... and {len(cases) - FEW} more"] if len(cases) > FEW else []
    return [Fault([what, *cases[:FEW], *more], what, cases)] if cases else []


def raise_any(faults: Sequence[str]) -> None:
    """Raise UserError with these faults, if there are any."""
    if faults:
        raise UserError(*faults)


def pixels(height: int, width: int) -> str:
    """A size as people and file managers say it."""
    return f"{width}×{height} px"


def combine(a: Path, b: Path, out: Path, *, force: bool = False) -> int:
    """Two folders -> A|B side by side, as PNGs in `out`; sub-folders are kept. Returns how many were written.

    A pair's images must be of one size. Where one is grey and the other in colour, or one has opacity and the other
    none, the result has both, and no pixel changes its look.

    Raises UserError as `find_pairs` does, where sizes differ or a file cannot be read, where `out` lies in a or b,
    and where a file would be overwritten (`force` allows that). Nothing is written before all of this is known,
    except that a file may turn out to be cut short when it is decoded.
    """
    pairs = find_pairs(a, b)
    _refuse_inside([out / sub for sub in pairs], [a, b], pairs)
    shapes = _shapes_of_bytes(file for files in _all(pairs) for file in files)
    raise_any(
        several(
            "a pair's images must be of one size to lie side by side:",
            (
                f"{left} is {pixels(*shapes[left][:2])}, {right} is {pixels(*shapes[right][:2])}"
                for left, right in _all(pairs)
                if shapes[left][:2] != shapes[right][:2]
            ),
        )
    )
    _refuse_overwriting([(out / sub, stem) for sub, found in pairs.items() for stem in found], force)
    for sub, found in pairs.items():
        _make(out / sub)
        for stem, files in found.items():
            write_png(out / sub / f"{stem}.png", side_by_side(*map(read_image, files)))
    return len(list(_all(pairs)))


def split(ab: Path, out: Path, *, force: bool = False) -> int:
    """A|B side by side -> PNGs in out/A and out/B; sub-folders are kept. Returns how many pairs were written.

    The halves keep the channels of the whole. Raises UserError as `combine` does; widths must be even.
    """
    pairs = find_pairs(ab)
    sides = [out / "A", out / "B"]
    _refuse_inside([side / sub for side in sides for sub in pairs], [ab], pairs)
    shapes = _shapes_of_bytes(file for files in _all(pairs) for file in files)
    raise_any(odd_widths({file: shapes[file] for (file,) in _all(pairs)}))
    _refuse_overwriting([(side / sub, stem) for side in sides for sub, found in pairs.items() for stem in found], force)
    for sub, found in pairs.items():
        for side in sides:
            _make(side / sub)
        for stem, (file,) in found.items():
            for side, half in zip(sides, halves(read_image(file)), strict=True):
                write_png(side / sub / f"{stem}.png", half)
    return len(list(_all(pairs)))


def side_by_side(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Two (H, W, C) uint8 images of one size -> (H, 2W, C), in the fewest channels that hold both."""
    counts = {a.shape[2], b.shape[2]}
    channels = (3 if counts & {3, 4} else 1) + bool(counts & {2, 4})
    return np.concatenate([with_channels(a, channels), with_channels(b, channels)], axis=1)


def halves(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(H, 2W, C) -> left and right (H, W, C), each with memory of its own."""
    middle = image.shape[1] // 2
    return image[:, :middle].copy(), image[:, middle:].copy()


def odd_widths(shapes: Mapping[Path, Shape]) -> list[str]:
    """The fault of images that have no two equal halves."""
    odd = (f"{file} is {pixels(*shape[:2])}" for file, shape in shapes.items() if shape[1] % 2)
    return several("images with A and B side by side must have an even width:", odd)


# --- what does not fit -----------------------------------------------------------------------------------------


def _refuse_missing(folders: Sequence[Path]) -> None:
    def fault(folder: Path) -> str:
        if folder.exists():
            return f"{folder}: is a file; a folder of images is expected"
        here = "" if folder.is_absolute() else f" (looked for in {Path.cwd()})"
        return f"{folder}: no such folder{here}"

    raise_any([fault(folder) for folder in folders if not folder.is_dir()])


def _sub_folders(folders: Sequence[Path]) -> list[str]:
    """Those of train, val and test that the folders have, or [""]."""
    have: dict[Path, list[str]] = {folder: [name for name in SPLITS if (folder / name).is_dir()] for folder in folders}
    first = have[folders[0]]
    if any(names != first for names in have.values()):
        told = ", ".join(f"{folder} has {_listed(names) or 'none'}" for folder, names in have.items())
        raise UserError(f"{told}: both folders must have the same of train/, val/ and test/, or both none")
    if not first:
        return [""]
    raise_any(
        [
            f"{folder}: {_images(found)} beside {_listed(first)} would belong to no split: move them in, or away"
            for folder in folders
            if (found := find_images(folder))
        ]
    )
    return first


def _no_images(folder: Path, *, root: bool) -> str:
    """What was found where images were expected."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    deeper = {path: len(find_images(path)) for path in inside}
    split = [path for path in inside if any((path / name).is_dir() for name in SPLITS)]
    found = [f"{path.name}/ with {_listed([n for n in SPLITS if (path / n).is_dir()])}" for path in split]
    found += [f"{path.name}/ with {count} image{'s' * (count != 1)}" for path, count in deeper.items() if count]
    if found:
        expected = "images, or train/, val/ and test/," if root else "images"
        told = "; ".join(found[:FEW]) + (f" and {len(found) - FEW} more" if len(found) > FEW else "")
        return f"{folder}: expected {expected} in this folder itself, found {told}: name the folder that holds them"
    files = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    found_files = f"found {', '.join(files[:FEW])}{', ...' * (len(files) > FEW)}" if files else "it is empty"
    return f"{folder}: expected images ({', '.join(suffix[1:] for suffix in SUFFIXES)}), {found_files}"


def _shared_stems(files: Sequence[tuple[str, Path]], folder: Path) -> str:
    by_stem: dict[str, list[str]] = {}
    for stem, file in files:
        by_stem.setdefault(stem, []).append(str(file.relative_to(folder)))
    shared = [" and ".join(names) for names in by_stem.values() if len(names) > 1]
    what = f"{folder}: files are paired by name without suffix, and some share one:"
    return "".join(several(what, shared))


def _alone(a: Mapping[str, Path], b: Mapping[str, Path], folder_a: Path, folder_b: Path) -> list[str]:
    """The files of each folder that the other has no partner for."""
    faults = []
    for mine, theirs, here, there in ((a, b, folder_a, folder_b), (b, a, folder_b, folder_a)):
        alone = [file.name for stem, file in mine.items() if stem not in theirs]
        what = f"{here}: {len(alone)} of {_images(mine)} without a partner of the same name in {there}:"
        faults += several(what, alone)
    return faults


def _refuse_inside(outs: Sequence[Path], roots: Sequence[Path], pairs: Mapping[str, Mapping[str, Files]]) -> None:
    """Links are followed, those of sub-folders too: what counts is where a file would come to lie."""
    parents = dict.fromkeys(file.parent for files in _all(pairs) for file in files)
    for out in outs:
        for source in (*roots, *parents):
            if out.resolve().is_relative_to(source.resolve()):
                raise UserError(f"{out}: lies inside {source}, which is only read: choose another folder with -o")


def _refuse_overwriting(planned: Iterable[tuple[Path, str]], force: bool) -> None:
    """`planned`: folder and stem of each PNG. One of the same stem in another format would be a second such pair."""
    planned = list(planned)
    there: dict[tuple[Path, str], list[Path]] = {}
    for folder in {folder for folder, _ in planned}:
        for file in find_images(folder) if folder.is_dir() else []:
            there.setdefault((folder, stem_of(file)), []).append(file)
    found = [str(file) for place in planned for file in there.get(place, [])]
    if force:
        others = [file for file in found if not file.endswith(".png")]
        raise_any(several("PNGs of the same name would come to lie beside these: remove them first", others))
    else:
        raise_any(several(f"{_images(found)} of the same name there already: --force replaces them", found))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder}: cannot be made, a file is in its place: choose another folder with -o") from None


def _all(pairs: Mapping[str, Mapping[str, Files]]) -> Iterable[Files]:
    return (files for found in pairs.values() for files in found.values())


def _images(found: Iterable[object]) -> str:
    count = len(list(found))
    return f"{count} image{'s' * (count != 1)}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{name}/" for name in names)
