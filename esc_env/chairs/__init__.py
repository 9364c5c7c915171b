"""Who sits opposite the supporter: seekers and critics from strings, objects, functions and chat models."""
