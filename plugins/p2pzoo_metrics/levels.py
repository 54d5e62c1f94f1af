"""Images as an 8-bit picture file would hold them, for metrics that ask what a viewer sees. Imports torch."""

from torch import Tensor

from p2pzoo.utils.errors import UserError


def levels(images: Tensor) -> Tensor:
    """Images of any shape in [-1, 1] -> whole numbers 0 to 255, float32: clipped, and rounded as pictures are saved.

    What is not a number stays so: the numbers of a run that diverged must show it.
    """
    return ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round()


def refuse_unless(channels: tuple[int, ...], images: Tensor, metric: str) -> None:
    """Raises UserError where the images have another number of channels than the metric takes."""
    if images.shape[1] not in channels:
        taken = " or ".join({1: "grey (1 channel)", 3: "RGB (3 channels)"}[count] for count in channels)
        raise UserError(f"{metric} takes {taken} images, and these have {images.shape[1]}: drop it from the recipe")
