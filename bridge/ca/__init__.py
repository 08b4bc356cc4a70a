"""The fleet's own small certificate authority: who may speak to the broker, and about what."""
