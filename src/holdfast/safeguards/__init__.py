"""Safeguards: what a defender trains into the weights. Each safeguard is one file, and the folder is the list."""
