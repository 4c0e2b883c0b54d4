"""Text to token ids and back, by what a stranger's model folder defines: in a process of its own, within limits."""
