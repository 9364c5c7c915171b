"""A small cross-encoder that reads what the seeker said and a reply together, and the chairs that hear by it."""
