"""Quantized copies of a model's folder that transformers itself loads."""
