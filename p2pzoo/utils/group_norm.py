"""How many groups a group norm has. Imports nothing."""

MAX_GROUPS = 32  # Wu & He 2018 (arXiv:1803.08494), and most U-Nets of diffusion
MIN_GROUP = 4  # channels: a group of one channel is an instance norm, which removes constant planes


def count_groups(channels: int) -> int:
    """The largest number of equal groups of at least MIN_GROUP channels, at most MAX_GROUPS; 1 if there is none.

    >>> [count_groups(channels) for channels in (3, 8, 64, 256)]
    [1, 2, 16, 32]
    """
    return max(
        (groups for groups in range(1, MAX_GROUPS + 1) if channels % groups == 0 and channels // groups >= MIN_GROUP),
        default=1,
    )
