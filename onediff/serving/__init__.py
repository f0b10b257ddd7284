"""A page on this machine where two pictures are dropped in and the caption comes back."""
