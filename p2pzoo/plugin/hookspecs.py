"""Everything that a plugin can extend: one hook per kind of component, for commands, for addresses of models.

It imports pluggy only. A plugin is a module that implements some of these hooks and is named in the entry-point group
`p2pzoo`. p2pzoo calls each hook with a function:

    register(name, factory, *, summary="", paper="", needs=())

    name     what a recipe writes after `use =`; lower case, words joined by hyphens or underscores
    factory  a class or function, or "module:attribute", which is imported when a recipe uses it
    summary  one line for `p2pzoo list`; of a command, for `p2pzoo --help`
    paper    the source: an arXiv id, a DOI, a section, an address
    needs    what it reads besides x and y. A metric, a loss, a GAN loss or an augmentation: "labels", "blocks" of the
             batch; a loss or a GAN loss also "features" or "z" of the generator. A discriminator: "labels"; it is then
             called as D(x, y, labels)

p2pzoo passes the positional arguments of a factory by name; each hook lists those it has. Keyword-only arguments are
the parameters that a recipe may set. `p2pzoo/plugin/protocols.py` and `networks.py` define what each kind must be.
"""

from collections.abc import Callable

import pluggy

hookspec = pluggy.HookspecMarker("p2pzoo")
hookimpl = pluggy.HookimplMarker("p2pzoo")


@hookspec
def register_generators(register: Callable[..., None]) -> None:
    """Register networks G(x) -> ŷ. They may take `in_channels`, `out_channels`, `size`."""


@hookspec
def register_discriminators(register: Callable[..., None]) -> None:
    """Register networks D(x, y) -> logits. They may take `in_channels`, `out_channels`, `size`."""


@hookspec
def register_processes(register: Callable[..., None]) -> None:
    """Register processes: what G sees besides x, and how it is asked. They may take `in_channels`, `out_channels`,
    `size`, `takes_time`."""


@hookspec
def register_gan_losses(register: Callable[..., None]) -> None:
    """Register GAN losses: what D and G minimise. They may take `in_channels`, `out_channels`, `size`; with
    `needs=("features",)` also `feature_channels`."""


@hookspec
def register_losses(register: Callable[..., None]) -> None:
    """Register further losses of G or of D. They may take `in_channels`, `out_channels`, `size`; with
    `needs=("features",)` also `feature_channels`, the channels of each tensor of `G.features(x)`."""


@hookspec
def register_augmentations(register: Callable[..., None]) -> None:
    """Register random changes of pairs or of D's images. They may take `in_channels`, `out_channels`, `size`."""


@hookspec
def register_datasets(register: Callable[..., None]) -> None:
    """Register sequences of aligned pairs. They may take `split`: "train", "val" or "test"."""


@hookspec
def register_metrics(register: Callable[..., None]) -> None:
    """Register measurements of ŷ per image, with a summary of all images. They may take `dataset`."""


@hookspec
def register_callbacks(register: Callable[..., None]) -> None:
    """Register observers of a run, such as trackers. They take no positional arguments and change nothing."""


@hookspec
def register_models(register: Callable[..., None]) -> None:
    """Register trained generators that the plugin ships: functions that return a folder, for `zoo:NAME`."""


@hookspec
def register_model_sources(register: Callable[..., None]) -> None:
    """Register functions that find a trained generator elsewhere: `name` is a scheme, as in "hf:OWNER/NAME".

    The function gets what is behind the colon and returns a `p2pzoo.plugin.FoundModel`. It raises UserError, with the
    whole address, if there is no such model.
    """


@hookspec
def register_commands(register: Callable[..., None]) -> None:
    """Register commands of `p2pzoo`: a click command, or "module:attribute" of one, imported when it is called.

    `p2pzoo --help` prints the `summary`. The command's own module may import `p2pzoo.cli.options`.
    """
