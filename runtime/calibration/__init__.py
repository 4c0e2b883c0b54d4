"""Probes that measure this machine and this pair of models."""
