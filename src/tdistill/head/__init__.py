"""The student as one module, and the ways to get Q at the candidates out of it."""
