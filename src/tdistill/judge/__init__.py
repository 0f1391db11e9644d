"""Let a judge model compare two systems' answers."""
