"""Prepares data sets: converts downloads and archives to image folders or stores."""
