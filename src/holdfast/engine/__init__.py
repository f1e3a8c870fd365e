"""The modules that touch weights; torch belongs here."""
