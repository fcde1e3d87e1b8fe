"""Figures, report.html and the records of a run."""
