"""Compare finished runs by quality and cost (``tdistill compare``). ``collect`` reads, ``comparing`` pools, ``pages`` writes."""
