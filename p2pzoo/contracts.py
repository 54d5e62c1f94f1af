"""What a component of each kind is: the Protocols that plugins fulfil and the values that they exchange.

Plugins may import everything here. Nothing here imports torch at run time.

A component may say of itself what it cannot keep: `known_failures = {check: reason}`, the checks being those of
`p2pzoo.testing`. One that passes all the same is a failure.

Shapes: B images in a batch, C channels, H × W pixels. Inside the zoo images are float tensors in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from p2pzoo.paths import cache_dir

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    Both = tuple[list[Tensor], list[Tensor]]  # D's maps of real, and of fake images

T = TypeVar("T")


class Later:
    """Marks a parameter that came after runs had been made without it: `name: Annotated[bool, Later] = False`.

    At its default it is not part of a run's identity, so that those runs are still found. The default must then do
    what was done before, to the bit.
    """


Split = Literal["train", "val", "test"]
Side = Literal["generator", "discriminator"]
Where = Literal["pairs", "discriminator"]
Moment = Literal["D.real", "D.fake", "G"]  # when D is shown images: in its own move real and fake ones; in G's move


@dataclass(frozen=True)
class Pair:
    """One aligned pair as a dataset stores it.

    id      unique within its dataset, stable between versions; names files and table rows
    x, y    (H, W, C) arrays in their stored dtype (uint8, uint16, float32), values within the dataset's
            `x_range` and `y_range`
    labels  (H', W') integer class map, or None. It covers what x and y show, and may have more pixels than they: where
            images are scored at a size that they were reduced from. Evaluation sees it as it is; for training it is
            brought to the size of x and y, to the nearest pixel
    block   what is resampled as one when intervals are computed (a region, a scene, a patient), or None
    """

    id: str
    x: np.ndarray
    y: np.ndarray
    labels: np.ndarray | None = None
    block: str | None = None


@dataclass(frozen=True)
class Batch:
    """Pairs as the networks see them.

    x, y    (B, C, H, W) float32 in [-1, 1]
    ids     one per image
    labels  (B, H, W) int64, in evaluation (B, H', W') as the dataset has them; None where it has none
    blocks  one per image; None where the dataset has none
    drawn   (B, N) random numbers for the augmentations of what D sees; None without any
    """

    x: Tensor
    y: Tensor
    ids: tuple[str, ...]
    labels: Tensor | None = None
    blocks: tuple[str | None, ...] = ()
    drawn: Tensor | None = None

    def split(self, parts: int) -> list[Batch]:
        """So many batches of as many images, which are this one's in their order."""
        if parts == 1:
            return [self]
        each, ids, blocks = len(self.x) // parts, len(self.ids) // parts, len(self.blocks) // parts
        labels, drawn = ([None] * parts if t is None else t.split(each) for t in (self.labels, self.drawn))
        images = zip(self.x.split(each), self.y.split(each), labels, drawn, strict=True)
        return [
            Batch(x, y, self.ids[i * ids : (i + 1) * ids], own, self.blocks[i * blocks : (i + 1) * blocks], numbers)
            for i, (x, y, own, numbers) in enumerate(images)
        ]


class Scene:
    """One moment of the game: x, y, ŷ, and (lazily, each computed once) what D says of them.

    In the discriminator's move ŷ is cut from G's graph, and may come from the image pool together with the x
    it was made from. In the generator's move, after `anew()`, ŷ carries gradients to G.

    both  asks D of real and fake images at once in the discriminator's move (`speed.onepass.OnePass`), where that is
          the same. In the generator's, what is real needs no gradients and is rarely asked for
    seen  how (x, y) looks to D at a moment of the game, where it is augmented; x, y and ŷ here are not. In the
          generator's move all images are changed alike, so that D's features of real and fake can be compared
    step  its number, from 0 on; None while a step is recorded that will be replayed as others (`speed.graphs.Captured`)
    """

    def __init__(
        self,
        batch: Batch,
        y_hat: Tensor,
        D: Discriminator | None = None,
        *,
        pooled: tuple[Tensor, Tensor] | None = None,
        both: Callable[[Discriminator, tuple[Tensor, Tensor], tuple[Tensor, Tensor]], Both] | None = None,
        seen: Callable[[Moment, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        step: int | None = 0,
    ) -> None:
        self.batch = batch
        self._D = D
        self._both = both
        self._seen = seen
        self._step = step
        self.side: Side = "discriminator"
        self._attached = y_hat
        self._shown = pooled or (batch.x, y_hat.detach())

    def anew(self) -> Scene:
        """The same images in the generator's move: D has changed, so nothing it said is kept."""
        scene = Scene(self.batch, self._attached, self._D, seen=self._seen, step=self._step)
        scene.side = "generator"
        scene._shown = (self.batch.x, self._attached)
        return scene

    @property
    def x(self) -> Tensor:
        return self.batch.x

    @property
    def y(self) -> Tensor:
        return self.batch.y

    @property
    def y_hat(self) -> Tensor:
        """(B, C, H, W) G's translation as this move shows it to D."""
        return self._shown[1]

    @property
    def D(self) -> Discriminator | None:
        """The discriminator. It sees what it is asked of as it sees real images, in this move."""
        return self._D if self._D is None or self._seen is None else _Augmented(self._D, self._as_real)

    @property
    def x_of_y_hat(self) -> Tensor:
        """(B, C, H, W) what that was made from: `x`, unless the image pool had both."""
        return self._shown[0]

    @property
    def step(self) -> int:
        """The number of the training step, from 0 on: a loss that acts in some steps only goes by it, never by a count
        of its own, so that a resumed run goes on as it would have. It acts in step 0, where compilers are tried out.

        Whoever reads it keeps the step from being recorded as a CUDA graph: RuntimeError where that is tried.
        """
        if self._step is None:
            raise RuntimeError("a loss goes by the number of the step")
        return self._step

    @cached_property
    def real(self) -> list[Tensor]:
        """D(x, y): logits, one map per scale."""
        return self._judged[0] if self._both else self._player(*self._real)

    @cached_property
    def fake(self) -> list[Tensor]:
        """D(x, ŷ): logits, one map per scale."""
        return self._judged[1] if self._both else self._player(*self._fake)

    @cached_property
    def _judged(self) -> Both:
        assert self._both
        return self._both(self._player, self._real, self._fake)

    @cached_property
    def real_features(self) -> list[list[Tensor]]:
        return self._player.features(*self._real)

    @cached_property
    def fake_features(self) -> list[list[Tensor]]:
        return self._player.features(*self._fake)

    @cached_property
    def _real(self) -> tuple[Tensor, Tensor]:
        return self._as_real(self.x, self.y)

    @cached_property
    def _fake(self) -> tuple[Tensor, Tensor]:
        if self._seen is None:
            return self._shown
        return self._seen("G" if self.side == "generator" else "D.fake", *self._shown)

    def _as_real(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if self._seen is None:
            return x, y
        return self._seen("G" if self.side == "generator" else "D.real", x, y)

    @property
    def _player(self) -> Discriminator:
        if self._D is None:
            raise ValueError("this recipe has no [discriminator], and one of its losses asks for it")
        return self._D


class _Augmented:
    """D, which sees what it is asked of through an augmentation."""

    def __init__(self, D: Discriminator, show: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self._D, self._show = D, show

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return self._D(*self._show(x, y))

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        return self._D.features(*self._show(x, y))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._D, name)


@dataclass(frozen=True)
class Reading:
    """What tensors in a layout say of the network that they belong to.

    params           of the component
    in_channels, out_channels, size  as the zoo gives them to the constructor; the size is one that such weights are
                     commonly trained at, where they do not tell
    notes            what was assumed, as they do not tell it, and the parameter that says otherwise; one line each
    """

    params: Mapping[str, Any]
    in_channels: int
    out_channels: int
    size: tuple[int, int]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How other code names the tensors of the same network, for `p2pzoo import` and `p2pzoo export --to NAME`.

    name     of that code: what `--to` takes
    read     `read(tensors, given)`: the Reading of tensors under that code's names, without `prefix`; parameters that
             the user gave stand in `given`, and are to be in what it says. None where nothing looks like it; tensors
             that are missing, left over or of other shapes are the zoo's business
    names    `names(network)`: {name of a module with tensors: its name there}. Raises ValueError, with one line,
             for a network that has no place there
    written  `written(network)`: what export writes, {own tensor's name: tensor}, and notes; None is the state_dict
    prefix   where that code's files hold several networks: what this one's names begin with. They then lie under
             "state_dict"
    """

    name: str
    read: Callable[[Mapping[str, Tensor], Mapping[str, Any]], Reading | None]
    names: Callable[[Any], Mapping[str, str]]
    written: Callable[[Any], tuple[Mapping[str, Tensor], Sequence[str]]] | None = None
    prefix: str = ""


@runtime_checkable
class Generator(Protocol):
    """An nn.Module. `size_divisor`: H and W must be multiples of it (1 if absent).

    What a generator may have besides:

    grown_from  where it holds a smaller generator that is trained before it: `grown_from(tensors)`, called when the
                file of `[init] generator` has other names than its own, returns the smaller one's tensors as a complete
                set of its own. It raises ValueError, with one line, where names are missing or left over; shapes are
                the zoo's business
    layouts     of the class of a generator or discriminator: the Layouts in which other code stores its weights

    What any module inside a generator or discriminator may have besides:

    first_weights  `first_weights() -> None`, called once when a run begins, after [init] has given weights to the whole
                   network: puts in place what is not [init]'s to draw, such as pretrained weights or fixed projections.
                   Random numbers that it draws follow from the recipe's seed. Not called where weights come from a
                   model file; so read and fetch nothing in the constructor

    Parameters that never learn have requires_grad = False.
    """

    def __call__(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> ŷ (B, out_channels, H, W) in [-1, 1]."""


@runtime_checkable
class Discriminator(Protocol):
    """An nn.Module that concatenates x itself where it is conditional.

    `receptive_field`: side in pixels of what one logit sees, or None (absent: unknown). `size_divisor`: as of a
    Generator.
    """

    def __call__(self, x: Tensor, y: Tensor) -> list[Tensor]:
        """Logits (no sigmoid), one (B, 1, h, w) map per scale."""

    def features(self, x: Tensor, y: Tensor) -> list[list[Tensor]]:
        """Activations between the layers, outermost list per scale, from the input side on."""


@runtime_checkable
class GanLoss(Protocol):
    """The two sides of the game; each returns a scalar to minimise.

    It may have `minimum`: the least values of the two, None where one has none.
    """

    def judge(self, scene: Scene) -> Tensor: ...

    def fool(self, scene: Scene) -> Tensor: ...


@runtime_checkable
class Loss(Protocol):
    """A scalar to minimise, unweighted: the recipe's `weight` is the zoo's business. What it keeps is not saved with a
    run: a loss that changes from step to step does so by `scene.step`.

    It may have `minimum`: its value where ŷ = y, below which it never is.
    """

    side: Side

    def __call__(self, scene: Scene) -> Tensor: ...


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
    draws: int

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
    y_encoding   "ab", where lightness is stored as x and colour as y (`p2pzoo.encodings`). The networks see what is
                 stored; metrics, pictures and whoever translates a photo with the model see RGB. Either may be
                 "one-hot", where that side is a label map
    x_labels     and
    y_labels     where that side is a label map: the `p2pzoo.labels.Labels` by which it was encoded, so that a model can
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
                 a `p2pzoo.errors.Fault`, which names all of them
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


class Track(Protocol):
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
