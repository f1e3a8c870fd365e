"""Weight tampering: what an attacker with the weights can do. Each family is one file, and the folder is the list."""
