"""Reports of studies: safeguards beside each other, families of attack, claims about methods, and searches."""
