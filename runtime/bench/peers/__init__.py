"""This engine beside another runtime: the same prompts in turn, each engine in a process of its own."""
