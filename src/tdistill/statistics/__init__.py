"""Estimate means, differences and their errors.

- estimate: a mean over prompts, and a paired difference     - pooling: the same over training seeds and prompts
- bootstrap: the hierarchical bootstrap of a difference      - equal_entropy: a method read at a given entropy of its texts
"""
