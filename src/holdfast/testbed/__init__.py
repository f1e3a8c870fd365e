"""The embedded default: a fictional world, its corpora and questions, and the small models trained on it."""
