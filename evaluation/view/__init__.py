"""Runs in the browser, also while they are made. Reads folders; writes nothing into them and locks nothing."""
