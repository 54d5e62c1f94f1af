"""Image files to arrays and back: formats, sizes, label maps, CIE Lab, grids; curves of a log as SVG."""
