"""Cells: what they are, running and recording them."""
