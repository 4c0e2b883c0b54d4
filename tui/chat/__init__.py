"""The chat app: a Textual terminal in this process, the engine in another."""
