"""Benchmarks: each module prints one table of ratios, measured in one run on this machine."""
