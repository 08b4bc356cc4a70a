"""Puts program, units and users into a system, live or on a card, and takes them out again without a trace."""
