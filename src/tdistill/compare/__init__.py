"""``tdistill compare``: finished runs against each other, by what they cost."""
