"""Safeguards and families of attack compared on worlds."""
