"""Ready domains and the check of a domain, on harmless rows of the public sets' columns."""
