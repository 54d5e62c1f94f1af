"""What a component of each kind is: the Protocols that plugins fulfil and the values that they exchange.

Plugins may import everything here. Nothing here imports torch at run time.

A component may say of itself what it cannot keep: `known_failures = {check: reason}`, the checks being those of
`p2pzoo.testing`. One that passes all the same is a failure.

Shapes: B images in a batch, C channels, H × W pixels. Inside the zoo images are float tensors in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.plugin.step_outputs import Side, StepOutputs

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class AddedLater:
    """Marks a parameter that came after runs had been made without it: `name: Annotated[bool, Later] = False`.

    At its default it is not part of a run's identity, so that those runs are still found. The default must then do
    what was done before, to the bit.
    """


Where = Literal["pairs", "discriminator"]


@runtime_checkable
class GanLoss(Protocol):
    """The two sides of the game; each returns a scalar to minimise.

    It may have `minimum`: the least values of the two, None where one has none.
    """

    def discriminator_loss(self, out: StepOutputs) -> Tensor: ...

    def generator_loss(self, out: StepOutputs) -> Tensor: ...


@runtime_checkable
class Loss(Protocol):
    """A scalar to minimise, unweighted: the recipe's `weight` is the zoo's business. What it keeps is not saved with a
    run: a loss that changes from step to step does so by `scene.step`.

    It may have `minimum`: its value where ŷ = y, below which it never is.
    """

    side: Side

    def __call__(self, out: StepOutputs) -> Tensor: ...


@runtime_checkable
class Augmentation(Protocol):
    """A random change of images while training. Its random numbers are its argument: it draws none itself.

    where  "pairs": of what G and D are trained on, on the device, before the step. "discriminator": of what D is shown,
           real and fake, each with numbers of its own, and again in G's move, whose gradients flow through it
    draws  how many random numbers it takes for an image

    What it does to an image must not depend on the rest of the batch. As part of the step that a CUDA graph records
    (where = "discriminator") it must not wait for the device.
    """

    where: Where
    num_random: int

    def __call__(self, x: Tensor, y: Tensor, labels: Tensor | None, u: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """x, y, labels as in Batch, u (B, draws) in [0, 1) -> the three, changed, of the same shapes and ranges.

        What moves pixels moves them alike in all three. D's images come without labels; y is then real or G's.
        """


@runtime_checkable
class Dataset(Protocol):
    """A sequence of Pairs with one channel count and one size throughout. Several threads may ask for pairs at once.

    x_range, y_range  the stored values that become -1 and 1
    classes           names, index = label value; None without labels
    palette           one RGB triple (0-255) per class; None without labels

    What it may have besides:

    fingerprint  of the user's own files: a string that changes with them. A run that was begun on other data is then
                 not resumed, and a finished one is marked
    files        of the user, that pairs are read from: `files[i]` are the paths of pair i, by which faults name it.
                 Where it has them, or a fingerprint, decoded pairs may be kept on disk; they are read again when one of
                 these files has changed
    x_encoding   "L", and
    y_encoding   "ab", where lightness is stored as x and colour as y (`p2pzoo.images.color_spaces`). The networks see what is
                 stored; metrics, pictures and whoever translates a photo with the model see RGB. Either may be
                 "one-hot", where that side is a label map
    x_labels     and
    y_labels     where that side is a label map: the `p2pzoo.images.label_maps.Labels` by which it was encoded, so that a model can
                 read such maps, or write them
    x_kernel     and
    y_kernel     "nearest", where the values of that side must not be mixed when the jitter enlarges it. None: the
                 recipe's kernel
    unscored     names of the classes that means over classes leave out: too rare to count, or of no interest
    scorer       where y is a photo: the file of a segmenter of `classes` that was trained on such photos, by which
                 metrics judge ŷ
    usable       where the constructor refuses some pairs for their files: a class method of the same parameters that
                 returns (the dataset without those pairs, what is wrong with them), so that `p2pzoo data check` finds
                 everything in one go. It raises UserError where no pairs are left. A fault that many files have may be
                 a `p2pzoo.utils.errors.Fault`, which names all of them
    prepare      where its files have to be made of others first: a static method
                 `prepare(out: Path, track: Track, *, ...) -> Sequence[str]`, whose keyword-only parameters are the
                 options of `p2pzoo data prepare NAME -o OUT`, which prints the lines that it returns. Called again, it
                 keeps what is whole
    original     where files have more pixels than pairs: `original(index)` is the pair before it was made smaller. For
                 training, what the jitter enlarges to is made of it in one step
    licence      of the class, of data that are not published as an `archive`: what to know of theirs, in one line,
                 which model cards tell. Where nothing says it, they leave a line for whoever trained to fill in
    archive      of the class: the `Archive` that its files are published in, which `p2pzoo data fetch NAME` gets
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    classes: Sequence[str] | None
    palette: Sequence[tuple[int, int, int]] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...


class ProgressBar(Protocol):
    def __call__(self, items: Iterable[T], total: int, doing: str) -> Iterable[T]:
        """The same items, one by one, while a person is shown how many of the total have been taken."""


@runtime_checkable
class Metric(Protocol):
    """version  enters the protocol of every number: raise it when the definition changes
    better   which way is good, for rankings of images; None where neither is (a ratio that is meant to be 1)

    What it may have besides:

    protocol  a mapping that JSON can hold: what its numbers depend on besides its parameters, such as weights by their
              digest. It is merged into the protocol of every number, in place of parameters of the same names
    draw      `draw(rows)`, given {row's label: its statistics}, makes a matplotlib Figure of a table's rows
    trust     `trust(device)` raises UserError where the numbers would mean nothing on this data, as those of a scorer
              that misreads real photos. Called before training, and on the target before a table is filled

    Metrics are made often (before training, to refuse early; for their protocol) and used once: heavy work waits for
    `trust` or the first `measure`.
    """

    version: str
    better: Literal["higher", "lower"] | None

    def measure(self, batch: Batch, y_hat: Tensor) -> Mapping[str, Tensor]:
        """Statistics with one row per image: {name: (B, ...)}. Must not depend on the rest of the batch."""

    def reduce(self, statistics: Mapping[str, Tensor]) -> Mapping[str, float]:
        """All images' statistics {name: (N, ...)} -> numbers; "value" is the headline. NaN where N is too few."""


class Callback:
    """Subclass and override what you want to see. Must draw no random numbers and change no tensor.

    Where a run has several processes each makes one, and only the first process calls it.
    """

    def start(self, folder: str, recipe: Mapping[str, Any]) -> None:
        """A run begins or goes on; `recipe` is the resolved one."""

    def log(self, images: int, losses: Mapping[str, float]) -> None:
        """Losses averaged since the last call; `images` seen so far."""

    def samples(self, images: int, path: str) -> None:
        """A sample grid has been written."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        """The run is complete and evaluated."""


class Model(Protocol):
    """A function without arguments: where a trained generator lies, for `zoo:NAME` in place of a run folder.

    That is a folder of the plugin as `p2pzoo card RUN -o DIR` makes it: model.safetensors, recipe.toml, and README.md,
    the model card that says what it was trained on and under which licences.
    """

    def __call__(self) -> Path: ...
