"""Tools in the chat: servers of the Model Context Protocol, and calls that a person allows."""
