"""From samples to scores."""
