"""Trees, drawing and verification in pure NumPy: no torch, no device, no file."""
