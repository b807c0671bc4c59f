"""A delivery's way from the queue to its settlement."""
