"""Tests of runtime.bench.peers."""
