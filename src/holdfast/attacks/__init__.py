"""Weight tampering: what an attacker with the weights can do. One file a family; the folder is the list."""
