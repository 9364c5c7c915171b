"""Can the instruments be believed? Critics and seekers beside people, attacks on them, and other conditions."""
