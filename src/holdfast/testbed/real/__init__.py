"""The testbed with a real language model: capitals stand for the hazard. Every fact comes from a package, none is typed."""
