"""The training step, the loop, resume; from a checked recipe to results."""
