"""Device, precision, processes; the same numbers in less time or memory."""
