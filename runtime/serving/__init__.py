"""Answers many clients with one session, whoever they are and however they came; no connection is known here."""
