"""Answer what an objective needs of the student's logits. One contract, four heads: full, chunked, candidates and sampled."""
