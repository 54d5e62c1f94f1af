"""The Hugging Face hub: models as `hf:OWNER/NAME`, and datasets of pairs. Registering imports no huggingface_hub."""

from p2pzoo import hookimpl


@hookimpl
def register_model_sources(register):
    register(
        "hf",
        "p2pzoo_hub.models:find_on_hub",
        summary="Models on the Hugging Face hub: hf:OWNER/NAME, hf:OWNER/NAME@REVISION",
        paper="none",
    )


@hookimpl
def register_datasets(register):
    register(
        "hub-pairs",
        "p2pzoo_hub.pairs:HubPairs",
        summary="Pairs of image columns of a dataset on the hub, or in a local folder of Parquet files",
        paper="arXiv:2109.02846",
    )
