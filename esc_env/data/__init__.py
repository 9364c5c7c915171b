"""Scenarios from files: strings that name sets, the layouts of files that are read, and what files are made of."""
