"""Markdown as a model writes it, parsed while it arrives and laid out in lines; knows no widget."""
