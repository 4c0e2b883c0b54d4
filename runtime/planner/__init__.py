"""Which tree to grow: predicted seconds and tokens of a round, learned while rounds run."""
