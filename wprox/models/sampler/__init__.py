"""The JKO sampler: draws from a density known up to a constant."""
