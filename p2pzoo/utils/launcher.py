"""Environment variables of a launcher (torchrun, accelerate) that starts several processes. Imports no torch."""

import os

from p2pzoo.utils.errors import UserError


def is_launched() -> bool:
    """Whether a launcher started this process as one of several of the same run. False for an unusable WORLD_SIZE."""
    count = os.environ.get("WORLD_SIZE", "")
    return count.isdecimal() and int(count) > 1


def check_environment() -> None:
    """Remove an empty WORLD_SIZE, which libraries cannot read. Raises UserError if it is not a number."""
    count = os.environ.get("WORLD_SIZE", "1")
    if not count:
        del os.environ["WORLD_SIZE"]
    elif not count.isdecimal():
        raise UserError(f"WORLD_SIZE = {count!r} in the environment: it is a number that torchrun sets; unset it")


def is_follower() -> bool:
    """Whether this is another process than rank 0, which prints for all of them."""
    return is_launched() and os.environ.get("RANK", "0") != "0"
