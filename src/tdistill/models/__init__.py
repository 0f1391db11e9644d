"""Load, check, cut and wrap models."""
