"""Estimate means, differences and their errors."""
