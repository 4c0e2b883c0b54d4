"""Measurements of the engine against its own predictions and the paper's claims."""
