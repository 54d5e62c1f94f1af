"""Files to pairs to batches, each keyed by (seed, index)."""

from p2pzoo.data.loader import TrainBatches, single_batches, train_batches
from p2pzoo.data.store import Store

__all__ = ["Store", "TrainBatches", "single_batches", "train_batches"]
