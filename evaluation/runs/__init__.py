"""A run: held, kept as a folder, and counted. What says something about one run, and asks nobody again."""
