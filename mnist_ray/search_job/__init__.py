"""The first job: a search."""
