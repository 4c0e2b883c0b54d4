"""The page that a run leaves behind: its content, and how it is drawn."""
