"""Floor 1, bytes: from a file to host memory to the device, on time."""
