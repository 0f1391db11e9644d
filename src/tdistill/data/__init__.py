"""Cache → examples → batches."""
