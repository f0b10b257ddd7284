"""A page on this machine where two images are dropped in and the caption comes back."""
