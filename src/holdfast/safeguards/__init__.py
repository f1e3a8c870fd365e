"""Safeguards: what a defender trains into the weights. One file each; the folder is the list."""
