"""Turn the roll-out cache into examples, and examples into batches."""
