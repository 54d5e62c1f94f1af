"""Calibrate a trained model on blocks of validation images, and write the calibration into its file. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from p2pzoo.compute.conv_as_gemm import AlgorithmChooser
from p2pzoo.compute.engine import Engine
from p2pzoo.config.experiment import Component, Experiment
from p2pzoo.config.settings import Translations
from p2pzoo.data import Store, single_batches
from p2pzoo.data.validation import validate_or_raise
from p2pzoo.models.intervals import (
    HEADER_KEY_OF_CALIBRATION,
    BoundsNetwork,
    Calibration,
    find_reason_against,
    middle_and_half,
)
from p2pzoo.models.load import read_model
from p2pzoo.models.model import Model
from p2pzoo.models.safetensors_io import save_model_tensors
from p2pzoo.models.translator import Translator
from p2pzoo.runs.evaluate import describe_component
from p2pzoo.runs.evaluate_model import check_images_fit, describe_other_scale
from p2pzoo.utils.errors import UserError
from p2pzoo.utils.paths import without_paths
from p2pzoo.utils.plurals import format_count
from p2pzoo_intervals.coverage import digest_pair
from p2pzoo_intervals.risk_control import UncoveredShares, least_blocks

DEFAULT_SAMPLES = 19  # the interval of smallest to largest covers 90% of a distribution
METRIC = "intervals:interval-coverage"

Note = Callable[[str], None]
Images = dict[Hashable, list[tuple[str, int]]]  # of each block: (split, index)


@dataclass(frozen=True)
class Outcome:
    """A calibration, and the mean uncovered share of the blocks that calibrated."""

    calibration: Calibration
    uncovered: float


def calibrate(
    model: Model, experiment: Experiment, *, level: float, splits: Sequence[str], samples: int | None, note: Note
) -> Outcome:
    """Find the least λ for a level (see `risk_control`) on the blocks of these splits of a recipe's data.

    samples  None: the generator's own bounds if it has them, else DEFAULT_SAMPLES translations

    Raises UserError for a model that cannot have intervals, data that do not fit it, and too few blocks.
    """
    samples = _choose_samples(model, samples)
    stores = {split: Store(experiment.dataset.build(split=split), compute=experiment.compute) for split in splits}
    for store in stores.values():
        check_images_fit(model, store, experiment.recipe.name)
        if difference := describe_other_scale(model, store, experiment.recipe.name):
            if experiment.id != model.run:
                raise UserError(f"{difference} (`translate --interval` uses that scale, so the promise is for it)")
            note("these images have another scale than those of the training, which `translate --interval` uses")
    validate_or_raise(experiment, stores, note, keep_train=False)
    if (measured := experiment.evaluate.split) in splits:
        note(
            f"the recipe measures its numbers on {measured} too ([evaluate] split): if they chose a checkpoint or a "
            "setting, the promise does not hold: calibrate on another --split"
        )
    blocks = _group_by_block(stores, note)
    _check_level(level, len(blocks), splits)
    engine = Engine(experiment.compute, AlgorithmChooser({}))
    G = model.G.to(engine.device, memory_format=engine.memory_format)  # type: ignore[call-overload]
    translations = Translations(test_mode=model.test_mode, weights=model.weights)
    measure = _Scores(Translator(BoundsNetwork(G, samples), translations, model.size_divisor), stores, engine)
    note(
        f"calibrating on {format_count(len(blocks), 'block')}, "
        f"{format_count(sum(map(len, blocks.values())), 'image')}, test mode {model.test_mode}"
    )
    shares = UncoveredShares()
    for images in blocks.values():
        shares.add(measure(images))
    factor, uncovered = shares.find_factor(level)
    calibration = Calibration(
        level=level, factor=factor, samples=samples, test_mode=translations.test_mode, blocks=len(blocks),
        images=tuple(sorted(measure.digests)), metric=METRIC,
        data={"dataset": _describe_dataset(experiment.dataset), "splits": [*splits]},
    )  # fmt: skip
    return Outcome(calibration, uncovered)


def _describe_dataset(dataset: Component) -> dict[str, Any]:
    """The dataset with its parameters, without paths: the file is given to others, and `images` says which pairs."""
    return describe_component(replace(dataset, values=without_paths(dataset.values)))


def file_state(path: Path) -> tuple[Path, int, int]:
    """The file of the model that `path` names now, with its size and its time: another one after a training."""
    *_, file = read_model(path)
    return file, file.stat().st_size, file.stat().st_mtime_ns


def write_calibration(path: Path, output: Path | None, calibration: Calibration, state: tuple[Path, int, int]) -> Path:
    """Write the model that `path` names with this calibration, to `output` or in its place. Returns the file.

    state  `file_state(path)` before the calibration. Raises UserError if it is another one now.
    """
    tensors, header, file = read_model(path)
    if file_state(path) != state:
        raise UserError(f"{path}: its model changed while it was calibrated; nothing is written: calibrate it again")
    output = output or file
    save_model_tensors(output, tensors, {**header, HEADER_KEY_OF_CALIBRATION: calibration.as_json()})
    return output


class _Scores:
    """Iterates over the scores of images, (C, H, W) each: the λ from which on a value is covered.

    digests  of the images so far
    """

    def __init__(self, translator: Translator, stores: dict[str, Store], engine: Engine) -> None:
        self.translator, self.stores, self.engine = translator, stores, engine
        self.digests: list[str] = []

    def __call__(self, images: Iterable[tuple[str, int]]) -> Iterator[Tensor]:
        for split, index in images:
            [batch] = single_batches(self.stores[split], range(index, index + 1))
            self.digests.append(digest_pair(batch.x[0], batch.y[0]))
            batch = self.engine.to_device(batch)
            [bounds] = self.translator(batch.x)
            middle, half = middle_and_half(*bounds.chunk(2, dim=1))
            scores = (batch.y - middle).abs() / half
            if not scores.isfinite().all():
                raise UserError(f"{batch.ids[0]}: its values or its bounds are not finite: calibrate another model")
            yield scores[0]


def _choose_samples(model: Model, samples: int | None) -> int:
    """The samples of a `Calibration`. Raises UserError for a model without intervals."""
    if reason := find_reason_against(model.header):
        raise UserError(reason)
    if model.checkpoint:
        raise UserError(f"{model.run}: its training is not finished ({model.checkpoint}): finish it with `p2pzoo run`")
    if samples is None and hasattr(model.G, "interval"):
        return 1
    try:
        if model.test_mode == "paper":
            model.check_can_sample("paper")
        elif not model.draws_in_eval:
            raise ValueError("this generator draws no random numbers in its test mode, eval: all samples are equal")
    except ValueError as error:
        raise UserError(
            f"{error}, and an interval needs them to differ, or a generator with bounds of its own: train one with "
            '[generator] use = "quantile-head"'
        ) from None
    return samples or DEFAULT_SAMPLES


def _group_by_block(stores: dict[str, Store], note: Note) -> Images:
    """The images of each block; an image without one is a block of its own. One that two splits share is there once."""
    blocks: Images = {}
    alone = shared = 0
    splits_of: dict[str, str] = {}  # the split that has an image, by its digest
    for split, store in stores.items():
        for index in range(len(store)):
            if len(stores) > 1:
                [batch] = single_batches(store, range(index, index + 1))
                if splits_of.setdefault(digest_pair(batch.x[0], batch.y[0]), split) != split:
                    shared += 1
                    continue
            block = store[index].block
            alone += block is None
            blocks.setdefault((split, index) if block is None else block, []).append((split, index))
    if alone:
        note(
            f"{format_count(alone, 'image')} without a block: each is a block of its own, as if it were independent of "
            "all others"
        )
    if shared:
        note(f"{format_count(shared, 'image')} of {' and '.join(stores)} are in both: each is counted once")
    return blocks


def _check_level(level: float, blocks: int, splits: Sequence[str]) -> None:
    """Raises UserError if so few blocks cannot support the level."""
    least = least_blocks(level)
    if blocks < least:
        which = " and ".join(splits)
        further = " or add --split test (and then measure the coverage on other data)" if "test" not in splits else ""
        possible = blocks / (blocks + 1)
        raise UserError(
            f"--level {level:g} needs at least {least} blocks, and {which} has {blocks}: choose --level "
            f"{int(possible * 100) / 100:g} or less{further}"
        )
