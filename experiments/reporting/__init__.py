"""Figures, report.html and run records."""
