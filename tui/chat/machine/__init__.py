"""Figures of the machine at work: panel, status line and tree."""
