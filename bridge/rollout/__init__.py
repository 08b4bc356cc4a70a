"""A config for a fleet, in waves that stop on the first failures: offers out, reports in, progress kept."""
