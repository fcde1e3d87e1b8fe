"""Benchmarks, which are run manually."""
