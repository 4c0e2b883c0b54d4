"""Prompt files in, result files out, and the headless run between them."""
