"""What everything stands on: domains, data, models, losses, optimizers, the driver, presets and records."""
