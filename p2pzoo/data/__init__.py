"""From a dataset's pairs to the batches the networks see: a store of pixels, augmentation as slices, batches."""

from p2pzoo.data.batches import TrainBatches, single_batches, train_batches
from p2pzoo.data.store import Store

__all__ = ["Store", "TrainBatches", "single_batches", "train_batches"]
