"""Networks: build, initialise, save, load, and run them on images."""
