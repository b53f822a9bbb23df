"""A federation in one process and its parts."""
