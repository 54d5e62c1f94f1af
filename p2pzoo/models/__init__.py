"""Networks built, initialised, saved, loaded, and used on images."""
