"""Runs beside each other: did each happen as it says, which is better, and how sure is that."""
