"""The top-p MDP of text as pure functions of tensors (Yu, Li & Zhang, AAAI 2026)."""
