"""What touches weights: torch has its home here."""
