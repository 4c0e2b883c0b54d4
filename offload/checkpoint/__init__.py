"""What lies in a model's folder: safetensors headers, layers as byte ranges, reads and writes of them."""
