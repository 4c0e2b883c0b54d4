"""Formats of weights: as stored, int8 rows and four bits, and the arithmetic on them."""
