"""Conversations in an SQLite database and in files."""
