"""Commands: `python -m experiments.NAME`, or `nutshell NAME`."""
