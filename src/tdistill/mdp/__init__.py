"""Compute the top-p MDP of text by pure functions of tensors (Yu, Li & Zhang, AAAI 2026)."""
