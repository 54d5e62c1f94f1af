"""Environment variables of a launcher (torchrun, accelerate) that starts several processes. Imports no torch."""

import os


def is_launched() -> bool:
    """Whether a launcher started this process as one of several of the same run."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def is_follower() -> bool:
    """Whether this is another process than rank 0, which prints for all of them."""
    return is_launched() and os.environ.get("RANK", "0") != "0"
