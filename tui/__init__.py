"""Floor 3, the terminal: the command line and everything that is printed."""
