"""A loss of the generator's side: called with a scene (x, y, ŷ, and what D says of them), it gives a scalar."""

from p2pzoo.contracts import Scene
from torch import Tensor


class Edges:
    """Gradient difference (Mathieu et al. 2016, arXiv:1511.05440, with the differences signed): edges like those of y.

    The mean of |Δy − Δŷ|, over horizontal and vertical neighbours: 0 to 4.
    """

    side = "generator"
    minimum = 0.0

    def __call__(self, scene: Scene) -> Tensor:
        difference = scene.y - scene.y_hat
        return difference.diff(dim=2).abs().mean() + difference.diff(dim=3).abs().mean()
