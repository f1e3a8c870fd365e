"""holdfast from Python: run a value, see how the run goes, and look at what came of it."""
