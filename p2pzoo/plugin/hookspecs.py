"""The whole extension surface: one hook per kind of component. Imports pluggy only.

A plugin is a module that implements some of these hooks and is named under the entry-point group
`p2pzoo`. Each hook hands the plugin a callable:

    register(name, factory, *, summary="", paper="", needs=())

    name     what recipes write after `use =`; lower case, words joined by hyphens
    factory  a class, or "module:attribute", which is imported only when a recipe uses it
    summary  one line for `p2pzoo list`
    paper    where it comes from: an arXiv id, a DOI, a section, an address
    needs    batch fields it reads besides x and y: "labels", "blocks"

Positional arguments of a factory are filled by the zoo, by name; keyword-only arguments are what a recipe
may set. What each kind has to be is in `p2pzoo/plugin/protocols.py`.
"""

from collections.abc import Callable

import pluggy

hookspec = pluggy.HookspecMarker("p2pzoo")
hookimpl = pluggy.HookimplMarker("p2pzoo")


@hookspec
def register_generators(register: Callable[..., None]) -> None:
    """Networks G(x) -> ŷ. The zoo fills `in_channels`, `out_channels`, `size`."""


@hookspec
def register_discriminators(register: Callable[..., None]) -> None:
    """Networks D(x, y) -> logits. The zoo fills `in_channels`, `out_channels`, `size`."""


@hookspec
def register_gan_losses(register: Callable[..., None]) -> None:
    """The two sides of the game: what D minimises (`discriminator_loss`) and what G minimises (`generator_loss`).

    The zoo fills `in_channels`, `out_channels`, `size`, where a loss asks for them.
    """


@hookspec
def register_losses(register: Callable[..., None]) -> None:
    """Further terms, each acting on one side: L1 on G, a gradient penalty on D. The zoo fills the same."""


@hookspec
def register_augmentations(register: Callable[..., None]) -> None:
    """Random changes of training pairs, or of what D sees. The zoo fills `in_channels`, `out_channels`, `size`."""


@hookspec
def register_datasets(register: Callable[..., None]) -> None:
    """Sequences of aligned pairs. The zoo fills `split`: "train", "val" or "test"."""


@hookspec
def register_metrics(register: Callable[..., None]) -> None:
    """Per-image measurements of ŷ and their summary. The zoo fills `dataset`."""


@hookspec
def register_callbacks(register: Callable[..., None]) -> None:
    """Onlookers of a run: trackers, uploaders. They watch and change nothing."""


@hookspec
def register_models(register: Callable[..., None]) -> None:
    """Generators that are trained already and travel with the plugin: `zoo:NAME` where a command takes a model."""


@hookspec
def register_commands(register: Callable[..., None]) -> None:
    """Commands of `p2pzoo`: a click command, or "module:attribute" of one. `--help` prints its `summary`."""
