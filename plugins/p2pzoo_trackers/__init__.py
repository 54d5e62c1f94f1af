"""Experiment trackers: callbacks that log the losses, images and results of a run.

Imports only p2pzoo: trackers are loaded when a recipe uses a component.
"""

import p2pzoo


@p2pzoo.hookimpl
def register_callbacks(register):
    register(
        "tensorboard",
        "p2pzoo_trackers.trackers:TensorBoard",
        summary="Log losses, images and results for TensorBoard, in the run's folder (p2pzoo[tensorboard])",
        paper="https://www.tensorflow.org/tensorboard",
    )
    register(
        "wandb",
        "p2pzoo_trackers.trackers:WandB",
        summary="Log losses, images and results to Weights & Biases (p2pzoo[wandb])",
        paper="https://docs.wandb.ai",
    )
