"""holdfast: tamper-resistant safeguards for open-weight language models, and what it costs to remove them."""
