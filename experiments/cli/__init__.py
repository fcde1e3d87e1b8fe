"""Flags, validation, startup and error messages of the commands."""
