"""Flags, checks, start-up and error messages of the commands."""
