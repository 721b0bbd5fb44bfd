"""The JKO flow: a density model whose blocks are JKO steps from the data to a Gaussian."""
