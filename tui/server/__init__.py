"""The loopback server for the tools that people use already, and how it is found."""
