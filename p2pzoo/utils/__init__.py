"""Errors, atomic files, paths, the version, seeded random numbers, suggestions, folds. Imports no other room."""
