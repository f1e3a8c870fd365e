"""Evaluations: what is measured on a live model, along an attack or alone. Each is one file; the folder is the list."""
