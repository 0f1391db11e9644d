"""Compare finished runs by quality and cost (``tdistill compare``)."""
