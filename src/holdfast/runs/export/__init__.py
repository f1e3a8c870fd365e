"""Results and questions in the formats of other tools: lm-evaluation-harness, Inspect, TamperBench."""
