"""What plugin authors import: hooks, the interface of each kind of component, and values. Imports no torch."""

from p2pzoo.plugin.archive import Archive
from p2pzoo.plugin.batch import Batch, Pair, Split
from p2pzoo.plugin.file_layout import FileLayout
from p2pzoo.plugin.hookspecs import hookimpl
from p2pzoo.plugin.model_source import FoundModel
from p2pzoo.plugin.networks import Discriminator, Generator
from p2pzoo.plugin.protocols import (
    AddedLater,
    Augmentation,
    Callback,
    Dataset,
    GanLoss,
    Loss,
    Metric,
    PretrainedModel,
    Process,
    ProgressBar,
)
from p2pzoo.plugin.step_outputs import Side, StepOutputs
from p2pzoo.plugin.weight_formats import InferredConfig, StateDictFormat

__all__ = [
    "AddedLater",
    "Archive",
    "Augmentation",
    "Batch",
    "Callback",
    "Dataset",
    "Discriminator",
    "FileLayout",
    "FoundModel",
    "GanLoss",
    "Generator",
    "InferredConfig",
    "Loss",
    "Metric",
    "Pair",
    "PretrainedModel",
    "Process",
    "ProgressBar",
    "Side",
    "Split",
    "StateDictFormat",
    "StepOutputs",
    "hookimpl",
]
