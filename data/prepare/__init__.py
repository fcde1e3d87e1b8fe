"""Downloads and archives to folders of images and stores."""
