"""Floor 2, tokens: from a prompt to a tree of drafts to verified text."""
