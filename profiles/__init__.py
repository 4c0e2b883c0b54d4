"""Floor 0, facts: what a machine and a pair of models can do. Imports no torch."""
