"""The engine: sessions, rounds of drafting and verifying, and what a session is loaded from."""
