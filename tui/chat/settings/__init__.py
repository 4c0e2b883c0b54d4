"""The chat app's settings: the file, the screen, and what is remembered."""
