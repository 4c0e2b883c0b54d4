"""Copies of layers to the device: one seam, `CopyEngine`, and the engines behind it."""
