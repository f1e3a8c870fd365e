"""Estimates from records: cells, seeds, recovery, and the summary of a campaign. No torch here."""
