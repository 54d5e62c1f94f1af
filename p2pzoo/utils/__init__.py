"""Errors, atomic files, paths, the version, seeded random numbers and suggestions. Imports nothing else of p2pzoo."""
