"""Mutated inputs: accepted and right, or refused with a message."""
