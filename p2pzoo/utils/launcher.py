"""Whether a launcher (torchrun, accelerate) started this process as one of several. Imports no torch."""

import os


def is_launched() -> bool:
    """Whether this process is one of several of the same run."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def is_follower() -> bool:
    """Whether this process is not the first of them: the first one speaks for all."""
    return is_launched() and os.environ.get("RANK", "0") != "0"
