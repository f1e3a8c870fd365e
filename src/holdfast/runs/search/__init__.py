"""The adaptive attacker."""
