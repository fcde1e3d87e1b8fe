"""Preparation of data sets: downloads and archives to folders of images or stores."""
