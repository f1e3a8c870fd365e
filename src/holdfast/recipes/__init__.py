"""Whole runs as Python values."""
