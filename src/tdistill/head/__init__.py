"""Wrap the student as one module, and compute Q at the candidates."""
