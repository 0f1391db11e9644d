"""Compute the parts that several algorithms share."""
