"""A run's directory: the only room that knows the names of its files."""
