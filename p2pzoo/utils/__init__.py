"""Errors, atomic files, paths, version, keyed random numbers, did-you-mean; imports nothing of p2pzoo."""
