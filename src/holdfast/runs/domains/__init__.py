"""Ready domains: public data sets prepared as domain folders, and what a domain folder lacks."""
