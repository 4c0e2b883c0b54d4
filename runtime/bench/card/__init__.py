"""What only an accelerator can tell: ten minutes of probes, each in a process of its own, for a report."""
