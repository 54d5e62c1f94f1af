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
    register(
        "mlflow",
        "p2pzoo_trackers.mlflow_tracker:MLflow",
        summary="Log losses, images and results to MLflow, in the run's folder or on a server (p2pzoo[mlflow])",
        paper="https://mlflow.org/docs/latest/ml/tracking",
    )
    register(
        "trackio",
        "p2pzoo_trackers.trackio_tracker:Trackio",
        summary="Log losses, images and results for Trackio, in the run's folder (p2pzoo[trackio])",
        paper="https://huggingface.co/docs/trackio",
    )
