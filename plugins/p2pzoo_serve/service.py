"""Translates uploaded files with one model, to the bytes that `p2pzoo translate` writes. Imports torch.

All files are in one private folder, under names of this module.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook

from p2pzoo import config
from p2pzoo.images.io import can_hold, inspect_image
from p2pzoo.models.model import Model
from p2pzoo.models.scaling import Scaling
from p2pzoo.models.tiling import Tiling
from p2pzoo.models.translate_files import describe_translation, interval_paths, sample_paths, translate_files
from p2pzoo.runs.evaluate_model import find_recipe_beside
from p2pzoo.utils.errors import Error, UserError
from p2pzoo.utils.plurals import format_count
from p2pzoo.utils.version import __version__
from p2pzoo_serve.interface import MEGAPIXEL, Answer, Limits, Options, Refusal
from p2pzoo_serve.uploads import Upload
from p2pzoo_serve.worker import Worker

PROMISE = (
    "Over calibration and a new exchangeable block, the expected uncovered share is at most {uncovered:g}; not per "
    "pixel, image, class, or on another continent."
)
ZIP_DATE = (1980, 1, 1, 0, 0, 0)  # the same request gives the same bytes


class Service:
    """A model and how it is asked, the worker that runs it, and the private folder of all files.

    Use it as a context: at its end the worker stops and the folder is deleted.
    Raises UserError for options that do not fit the model, and for a model whose translations no PNG can hold.
    """

    def __init__(
        self, path: Path, model: Model, limits: Limits, *, test_mode: str | None = None, tile: int | None = None,
        queue: int = 16,
    ) -> None:  # fmt: skip
        if not can_hold(".png", *model.output_format):
            dtype, channels = model.output_format
            raise UserError(
                f"{path}: gives {format_count(channels, 'channel')} of {dtype}, which no PNG can hold, so no page "
                "can show them: use `p2pzoo translate`"
            )
        self.model, self.limits = model, limits
        self.mode, self.tiling = _resolve_options(model, test_mode, tile)
        self.scaling = Scaling.resolve(model.file_layout)
        self.reason_against_samples = _find_reason_against_samples(model, self.mode)
        is_random = self.reason_against_samples is None or (self.mode == "eval" and model.draws_in_eval)
        self.facts = describe_model(path, model, self.mode)
        self.facts |= {"is_random": is_random, "limits": self._describe_limits()}
        self._exit = contextlib.ExitStack()
        self.folder = Path(self._exit.enter_context(tempfile.TemporaryDirectory(prefix="p2pzoo-serve-")))
        self.worker = Worker(queue)
        hook = register_module_forward_pre_hook(lambda *_: self.worker.raise_if_stopped())  # before each layer
        self._exit.callback(hook.remove)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.stop()
        self.worker.join(5)
        self.close_folder()

    def close_folder(self) -> None:
        """Delete all files of clients."""
        self._exit.close()

    def make_folder(self) -> Path:
        """A new folder for one request. The caller deletes it."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def check_options(self, options: Options) -> None:
        """Raises Refusal for what this model cannot give."""
        if options.samples and self.reason_against_samples:
            raise Refusal(400, f"samples: {self.reason_against_samples}")
        if options.interval is not None:
            try:
                self.model.check_interval(self.mode, options.interval, tiled=self.tiling is not None)
            except ValueError as error:
                raise Refusal(400, f"interval: {error}") from None

    def translate_one(self, upload: Upload, options: Options) -> Answer:
        """In the worker: a PNG, or a ZIP with samples or an interval. Raises Refusal with the reason of an image."""
        self._check_sizes([upload], options)
        files = self._translate(upload, options)
        if not options.samples and options.interval is None:
            return Answer(files[0], "image/png", f"{upload.name}.png")
        archive = upload.path.with_suffix(".zip")
        _write_zip(archive, [(member_name(upload.name, file), file) for file in files])
        return Answer(archive, "application/zip", f"{upload.name}.zip")

    def translate_batch(self, uploads: Sequence[Upload], options: Options) -> Answer:
        """In the worker: a ZIP with 001-NAME.png and so on, and the reasons of images that were skipped.

        Each image is translated by itself, so that it does not depend on the others. Raises Refusal if all are skipped.
        """
        faults = self._check_sizes(uploads, options)
        members: list[tuple[str, Path]] = []
        for number, upload in enumerate(uploads, start=1):
            self.worker.raise_if_stopped()
            if upload in faults:
                continue
            try:
                files = self._translate(upload, options)
            except Refusal as refusal:
                faults[upload] = refusal
            else:
                members += [(f"{number:03}-{member_name(upload.name, file)}", file) for file in files]
        if not members:
            raise Refusal(422, "; ".join(fault.message for fault in [*faults.values()][:3]))
        archive = uploads[0].path.with_suffix(".zip")
        lines = [fault.message for upload in uploads if (fault := faults.get(upload))]
        _write_zip(archive, members, "".join(f"{line}\n" for line in lines))
        return Answer(archive, "application/zip", "translations.zip", skipped=len(faults))

    def _check_sizes(self, uploads: Sequence[Upload], options: Options) -> dict[Upload, Refusal]:
        """The images that are skipped, by their headers. Raises Refusal for a single image, and for too much work."""
        faults: dict[Upload, Refusal] = {}
        work = 0
        for upload in uploads:
            try:
                work += self._count_pixels(upload)
            except Refusal as refusal:
                if len(uploads) == 1:
                    raise
                faults[upload] = refusal
        draws = options.samples or 1
        if options.interval is not None and self.model.calibration:
            draws += self.model.calibration.samples
        if work * draws > self.limits.pixels * Limits.WORK:
            most = self.limits.pixels * Limits.WORK / MEGAPIXEL
            raise Refusal(
                413,
                f"{work / MEGAPIXEL:.1f} megapixels, drawn {format_count(draws, 'time')}, are more than the {most:g} "
                "of one request: send smaller or fewer images, or ask for fewer samples",
            )
        return faults

    def _count_pixels(self, upload: Upload) -> int:
        """Pixels of an image by its header. Raises Refusal for too many, and for what is no image."""
        try:
            height, width, channels = inspect_image(upload.path).shape
        except UserError as error:
            raise Refusal(422, _for_client(error.faults, upload)) from None
        seen = self.model.padded_size(*self.scaling.size_of(height, width))  # of one row of pixels many times as many
        pixels = max(height * width, seen[0] * seen[1])
        if pixels > self.limits.pixels:
            at = f", seen by the network at {seen[1]} × {seen[0]} px" if pixels > height * width else ""
            found = f"{width} × {height} px{at}, are {pixels / MEGAPIXEL:.1f} megapixels"
            raise Refusal(413, f"{upload.name}: {found}, of at most {self.limits.megapixels:g}: make it smaller")
        if channels > max(4, self.model.in_channels):
            raise Refusal(
                422,
                f"{upload.name}: {format_count(channels, 'channel')}, and this model takes {self.model.in_channels}",
            )
        return pixels

    def _translate(self, upload: Upload, options: Options) -> list[Path]:
        """The files that `p2pzoo translate` writes, beside the upload. Raises Refusal."""
        model, target = self.model, upload.path.with_name(f"{upload.path.stem}-out.png")
        text = describe_translation(
            model, self.mode, options.seed, model.precision, self.tiling, self.scaling, {}, options.interval
        )
        outcomes = translate_files(
            model, {upload.path: target}, self.mode, seed=options.seed, tiling=self.tiling, text={"p2pzoo": text},
            samples=options.samples, scaling=self.scaling, interval=options.interval is not None,
        )  # fmt: skip
        with contextlib.closing(outcomes):
            [outcome] = outcomes
        upload.path.unlink()  # a batch then needs no more space than its results
        if outcome.faults:
            raise Refusal(422, _for_client(outcome.faults, upload))
        if options.samples:
            return sample_paths(target, options.samples)
        return [target, *(interval_paths(target) if options.interval is not None else [])]

    def _describe_limits(self) -> dict[str, Any]:
        return {
            "megabytes": self.limits.megabytes,
            "megapixels": self.limits.megapixels,
            "files": self.limits.files,
            "samples": None if self.reason_against_samples else self.limits.samples,
        }


def member_name(stem: str, file: Path) -> str:
    """The name of a result for the client: the part after "-out" says which result it is.

    >>> member_name("photo", Path("1-out-lower.png")), member_name("photo", Path("1-out.png"))
    ('photo-lower.png', 'photo.png')
    """
    return stem + file.name.partition("-out")[2]


def _write_zip(archive: Path, members: Iterable[tuple[str, Path]], faults: str = "") -> None:
    """Not compressed: PNGs are. Each member is deleted once it is inside."""
    with zipfile.ZipFile(archive, "x") as file:
        for name, path in members:
            with path.open("rb") as source, file.open(zipfile.ZipInfo(name, ZIP_DATE), "w") as member:
                shutil.copyfileobj(source, member)
            path.unlink()
        if faults:
            file.writestr(zipfile.ZipInfo("errors.txt", ZIP_DATE), faults)


def _resolve_options(model: Model, test_mode: str | None, tile: int | None) -> tuple[str, Tiling | None]:
    try:
        return model.resolve_options(test_mode, tile, None)
    except ValueError as error:
        raise UserError(str(error)) from None


def _find_reason_against_samples(model: Model, mode: str) -> str | None:
    try:
        model.check_can_sample(mode)
    except ValueError as error:
        return str(error)
    return None


def _for_client(faults: Sequence[str], upload: Upload) -> str:
    """A message with the client's name of a file in place of a path of this machine."""
    text = "; ".join(faults).replace(str(upload.path), upload.name)
    return text.replace(f"{upload.path.parent}/", "")


def describe_model(path: Path, model: Model, mode: str) -> dict[str, Any]:
    """What the page says about a model: how it was trained, and what it takes and gives. No paths of this machine."""
    title, dataset = "p2pzoo", None
    with contextlib.suppress(Error):  # a recipe whose plugin is missing: the model works without it
        if recipe := find_recipe_beside(path):
            experiment = config.load(recipe)
            data, title = experiment.dataset, experiment.title
            licence = getattr(data.factory, "licence", None)
            dataset = {"name": data.entry.name, "summary": data.entry.summary, "licence": licence and str(licence)}
    interval = None
    with contextlib.suppress(ValueError):
        model.check_interval(mode)
        assert model.calibration is not None
        level = model.calibration.level
        interval = {"level": level, "promise": PROMISE.format(uncovered=round(1 - level, 12))}
    return {
        "title": title,
        "run": model.run,
        "generator": model.header.use,
        "process": model.header.process.use if model.header.process else None,
        "parameters": sum(parameter.numel() for parameter in model.G.parameters()),
        "size": [*model.size],
        "input": _describe_side(model.in_channels, model.x_dtype, model.x_labels),
        "output": _describe_side(model.output_format[1], model.output_format[0], model.palette),
        "dataset": dataset,
        "checkpoint": model.checkpoint._asdict() if model.checkpoint else None,
        "test_mode": mode,
        "weights": model.weights,
        "precision": model.precision,
        "interval": interval,
        "p2pzoo": __version__,
    }


def _describe_side(channels: int, dtype: str, labels: object) -> Mapping[str, Any]:
    return {"channels": channels, "dtype": dtype, "is_label_map": labels is not None}
