"""Jobs and their runner."""
