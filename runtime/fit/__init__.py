"""What fits where and how fast it would run, told before a weight is read."""
