"""What a component of each kind must be: the Protocols that plugins implement. Imports no torch at run time.

Shapes: B images in a batch, C channels, H × W pixels. Images inside p2pzoo are float tensors in [-1, 1].

A component of any kind may declare checks of `p2pzoo.testing` that it fails: `known_failures = {check: reason}`. A
declared check that passes counts as a failure, so that the list stays true.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from p2pzoo.plugin.batch import Batch, Pair
from p2pzoo.plugin.step_outputs import Side, StepOutputs

if TYPE_CHECKING:
    from torch import Tensor, nn

_T = TypeVar("_T")


class AddedLater:
    """Marks a parameter that was added after people had made runs: `name: Annotated[bool, AddedLater] = False`.

    At its default the parameter is left out of the run id, so that p2pzoo still finds those runs. The default must give
    bit-identical results to the code before.
    """


@runtime_checkable
class Process(Protocol):
    """What G sees besides x while it is trained, and how a trained G translates: bridges, flows, diffusion.

    G predicts ŷ as without a process, so losses and D are the same: D gets (x, y) and (x, ŷ). Any generator can be
    used: it is built with `in_channels` = `channels`, and does not know of the process. A generator with batch norm is
    refused: its statistics would mix times in training, and not at use.

    A constructor that takes `in_channels` and `out_channels` raises ValueError for channels that do not fit. One that
    takes `takes_time` by position is given whether the generator has the time as an argument (see `Generator`).

    channels  that G sees in all

    Optional attributes:

    loss_weight  `loss_weight(t)`, None or absent without one: (B,) weights of images at the times t (B,) in the losses
                 of pixels (`StepOutputs.sample_weight`); of mean 1 over the times of training, so that the recipe's
                 weights keep their meaning. The rules of `noised` hold for it. A recipe without a loss that uses them
                 is refused
    passes_time  True: G is asked G(seen, t), with t (B,), in training; the sampler must ask it so too. Only allowed if
                 `takes_time` is true. Without it, what G sees must hold the time, whatever the generator takes

    Optional attribute of its class, as of a generator's:

    at_use  names of the parameters that training does not depend on: they may differ where a trained G is used
            (`[evaluate.process] steps = 4`, `p2pzoo translate --steps 4`)

    >>> import p2pzoo
    >>> process = p2pzoo.create("process", "flow", in_channels=1, out_channels=3)
    >>> isinstance(process, Process), process.channels
    (True, 5)
    """

    channels: int

    def noised(self, x: Tensor, y: Tensor, u: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """What G sees of training pairs, (B, channels, H, W), and their times t, (B,) in [0, 1].

        x, y  (B, C, H, W) in [-1, 1]
        u     (B,) uniform random numbers in [0, 1), from which t follows
        z     random numbers of N(0, 1) in the shape of y

        It draws no random numbers of its own and changes no argument in place. The result for an image must not depend
        on the rest of the batch. It may be recorded in a CUDA graph, so it must not synchronise with the device
        (`.item()`, `new_tensor`). Some u must give t = 1, where translations begin. Without `passes_time`, what G sees
        must tell times apart.
        """

    def sampler(self, G: nn.Module) -> nn.Module:
        """A module x (B, C_x, H, W) -> ŷ (B, C_y, H, W) in [-1, 1] around a trained G.

        It may call G several times, with inputs as `noised` gives them. It draws with torch's global generator, which
        p2pzoo seeds by the image, in training mode and in eval mode; on the CPU, so that devices agree. It has no
        parameters and buffers besides those of G: model files hold G alone.

        It may offer, for translation in tiles, in bf16, and as a graph of ONNX or a page, where noise is given to it:

        noise_shape      (K, C): the draws of noise for one translation, and the channels of each
        forward(x, noise=None)  with noise (B, K, C, H, W) of N(0, 1), used in this order in place of its own draws
        draw_noise(x)    the noise that a call with x would draw

        It may offer `path(x, limit)` for the report of a run: [(t, ŷ), …] at the times at which G is asked, `limit` of
        them at most (2 or more), of which the last ŷ is the translation.
        """


AugmentationTarget = Literal["pairs", "discriminator"]


@runtime_checkable
class GanLoss(Protocol):
    """The two sides of the game: what D minimises and what G minimises.

    It has no parameters to train, because it belongs to neither side; a `Loss` may have them.

    Optional attribute:

    minimum  (of the discriminator loss, of the generator loss): the lowest possible values; None for no lower bound
    """

    def discriminator_loss(self, out: StepOutputs) -> Tensor:
        """The scalar that D minimises, from `out.real` and `out.fake`."""

    def generator_loss(self, out: StepOutputs) -> Tensor:
        """The scalar that G minimises, from `out.fake`."""


@runtime_checkable
class Loss(Protocol):
    """A further loss of G or D; the recipe's `weight` is applied to its value.

    A loss that is an nn.Module may have state and parameters: its parameters are trained with the network of its side,
    by the same optimizer, and checkpoints keep them with its buffers. Frozen parameters (a pretrained network) are not
    kept: the constructor reads them again. The state of any other loss is lost when a run resumes, so it must depend on
    `out.step` alone. Random initial weights follow from the recipe's seed.

    It may use random numbers of torch's global generator, as in torch.rand(...), which is seeded for each step. Other
    random numbers break "the same seed, the same bits". It changes no argument in place, makes new tensors on the
    device of x, and reads `out.batch.labels`, `out.batch.blocks`, `out.G.features` or `out.G.draw_z` only if it is
    registered with `needs`. With `needs=("features",)` its constructor may take `feature_channels`, a tuple with the
    channels of each tensor of `G.features(x)`, to build layers for them. With `needs=("z",)` it may draw z of its own
    and call out.G(x, z=z). A recipe whose generator has no features, or takes no z, is refused.

    side  "generator" or "discriminator": the network that minimises it

    Optional attributes:

    minimum             its lowest value, reached at ŷ = y
    uses_sample_weight  True, a class attribute: it applies `StepOutputs.sample_weight`
    """

    side: Side

    def __call__(self, out: StepOutputs) -> Tensor:
        """The scalar to minimise, not weighted."""


@runtime_checkable
class Augmentation(Protocol):
    """A random change of images during training. It gets its random numbers as an argument and draws none.

    where       "pairs": changes the pairs that G and D are trained on, on the device, at the start of the step.
                "discriminator": changes what D gets: real and fake images, with different random numbers, and again in
                G's update, whose gradients flow through it
    num_random  number of random numbers that it needs for one image

    The result for an image must not depend on the rest of the batch. It may be recorded in a CUDA graph, so it must not
    synchronise with the device (`new_tensor`, `.item()`). If one does, training is slower: with where = "pairs" it is
    called before each replay, with where = "discriminator" there is no graph.

    An augmentation that is an nn.Module may have buffers, which checkpoints keep. Only `observe` changes them.

    Optional method, with where = "discriminator":

    observe  `observe(real)`, called after each update of D with the logits that D gave the (augmented) real images, a
             list with one (B, 1, h, w) map per scale, without gradients. With `[train] accumulate` it is called for
             each part, and each process has the logits of its own images. What it learns must be in buffers, and it may
             be recorded in a CUDA graph, so it changes them in place and keeps no count in Python
    """

    where: AugmentationTarget
    num_random: int

    def __call__(
        self, x: Tensor, y: Tensor, labels: Tensor | None, random: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return x, y and labels changed, with the same shapes and value ranges.

        x, y, labels  as in `Batch`. A geometric change moves the pixels of all three in the same way. With
                      where = "discriminator", y is real or fake, and labels is None unless D needs labels
        random        (B, num_random) random numbers in [0, 1)
        """


@runtime_checkable
class Dataset(Protocol):
    """A sequence of Pairs. All pairs have the same channels and the same size. Several threads may read pairs at once.

    x_range, y_range  stored values that become -1 and 1
    classes           class names, index = label value; None without labels. `Pair.labels` says how pixels without a
                      class are marked
    palette           one RGB triple (0-255) per class; None without labels

    Optional attributes:

    fingerprint           a string that changes with the user's files. A run that began with another fingerprint is not
                          resumed; a finished one is marked as stale
    files                 `files[i]`: a sequence of `pathlib.Path`, the files of pair i, for messages. With `files` or a
                          `fingerprint`, pairs may be cached on disk; one is decoded again when its files change
    x_encoding            "L", if x is the lightness of a photo and y its colour (`p2pzoo.images.color_spaces`), or
                          "one-hot", if x is a label map. Networks get what is stored; metrics and pictures show RGB
    y_encoding            "ab", if y is the colour of a photo, or "one-hot", if y is a label map
    x_labels, y_labels    `p2pzoo.images.label_maps.Labels` of a side that is a label map, so that a trained model can
                          read or write such maps
    x_kernel, y_kernel    "nearest", if the jitter must not mix the values of that side when it enlarges images. None:
                          the recipe's kernel
    unscored              names of classes that means over classes leave out: too rare to count, or of no interest
    training_parameters   names of parameters that change training pairs only. They are in a run's id and in no
                          protocol: numbers of runs that differ in them alone are compared
    scorer                file of a segmenter that was trained on the photos of y, with the classes of `classes`;
                          metrics apply it to ŷ
    scorers               {name: file} of further segmenters of that kind, which metrics apply when a recipe names them
    file_layout           `FileLayout`: the scale and the half in which x was taken from its files; a trained model then
                          takes its inputs from files in the same way. Without it, x is the whole image of its file
    file_shapes           `file_shapes[i]`: (H, W, C) of x and of y of pair i in their files, before they are resized
    resize_mode           "stretch", "fit", "crop" or "none": how images of `file_shapes` were resized; default: stretch
    blocks                `blocks[i]`: the block of pair i, so that folds need not read it
    original              `original(index)`: pair `index` at the resolution of its files, before it was reduced.
                          Training resizes it in one step to the size that the jitter enlarges to

    Optional attributes of the class:

    usable       a class method with the parameters of the constructor, for a constructor that refuses unusable files.
                 It returns (the dataset without the unusable pairs, one line per fault), so that `p2pzoo data check`
                 reports everything at once. It raises UserError if no pair is left. A fault that many files share may
                 be a `p2pzoo.utils.errors.SharedFault`
    prepare      a static method `prepare(out: Path, progress: ProgressBar, *, ...) -> Sequence[str]` that makes the
                 dataset's files from others. `p2pzoo data prepare NAME -o OUT` calls it: its keyword-only parameters
                 are the command's options, and the returned lines are printed. Files that are complete are kept
    licence      licence of the data in one line, for data without an `archive`; for model cards. Without it, a model
                 card has a line that the user fills in
    archive      the `Archive` that its files are published in; `p2pzoo data fetch NAME` downloads it
    picture_note  what the pictures of x and y show, if they are no colours: which channels, and in which units. The
                 report of a run shows it
    next_command  how `p2pzoo` translates other files of this kind with the model in the folder RUN, which a run prints
                 at its end: "translate-scene RUN SCENE.tif -o OUT.tif". Default: `p2pzoo translate` with an image
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    classes: Sequence[str] | None
    palette: Sequence[tuple[int, int, int]] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...


class ProgressBar(Protocol):
    """Shows on a terminal how far a loop is."""

    def __call__(self, items: Iterable[_T], total: int, doing: str) -> Iterable[_T]:
        """Yield the items and show how many of `total` were taken. doing: what the loop does, "extracting"."""


@runtime_checkable
class Metric(Protocol):
    """A measurement of ŷ: `measure` gives statistics per image, `reduce` summarises those of all images.

    Metrics are often created (to check a recipe, for their protocol) and used once, so do slow work in `trust` or in
    the first `measure`, not in the constructor.

    version  part of the protocol of every number; raise it when the definition changes
    better   "higher" or "lower", for rankings of images; None for a value that has a target, such as a ratio of 1

    Optional attributes:

    protocol  a mapping of JSON values that the numbers depend on besides the parameters, such as the digest of weights.
              It is merged into the protocol of every number and replaces parameters of the same name
    samples   a whole number M from 2 on, usually a parameter: `measure` then gets M translations of each image in place
              of one, y_hats (B, M, C, H, W), made with random numbers of the seeds 0 to M - 1. They are equal where G
              draws none, and where a table measures y itself. Their order must change no number
    calibration  None in its class, for a metric of intervals, which has `samples = 2`: `p2pzoo evaluate` sets it to the
              model's `Calibration`, and `measure` gets the lower and the upper bounds, (B, 2, C, H, W). Without a
              calibration `trust` raises UserError: a run's model has none yet
    minimum_images  the number of images from which on its values mean something, such as 50 for a distance between
              sets. A number of fewer is marked wherever it is printed; if `unbiased` is true, folds count together
    draw      `draw(rows) -> Figure`: a matplotlib figure of a table's rows, {row's label: its statistics}
    trust     `trust(device)` raises UserError if the numbers would mean nothing on this data, for example if a scorer
              misreads real photos. Called before training, and on the target before a table is filled
    """

    version: str
    better: Literal["higher", "lower"] | None

    def measure(self, batch: Batch, y_hat: Tensor) -> Mapping[str, Tensor]:
        """Statistics with one row per image: {name: (B, ...)}. They must not depend on the rest of the batch."""

    def reduce(self, statistics: Mapping[str, Tensor]) -> Mapping[str, float]:
        """Numbers from the statistics of all images, {name: (N, ...)}.

        "value" is the main one. NaN if N is too small.
        """


class Callback:
    """Base class of callbacks: override the events that you need. Draw no random numbers and change no tensor.

    With several processes, each creates the callback and only rank 0 calls its methods.
    """

    def start(self, folder: str, recipe: Mapping[str, Any]) -> None:
        """A run starts or resumes in `folder`; `recipe` is the resolved one."""

    def log(self, images: int, losses: Mapping[str, float]) -> None:
        """Losses, averaged since the last call; `images` is the number of images trained on so far."""

    def samples(self, images: int, path: str) -> None:
        """A grid of sample translations has been written to `path`."""

    def finish(self, metrics: Mapping[str, float]) -> None:
        """The run is complete and evaluated."""


class PretrainedModel(Protocol):
    """A function without arguments that returns the folder of a trained generator, for `zoo:NAME` in place of a run.

    The folder is part of the plugin. `p2pzoo card RUN -o DIR` writes it: model.safetensors, recipe.toml, and
    README.md, the model card with the training data and the licences.
    """

    def __call__(self) -> Path: ...
