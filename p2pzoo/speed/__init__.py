"""The same numbers in less time or memory: rewrites of networks, forms of convolutions, recorded steps, optimizers."""
