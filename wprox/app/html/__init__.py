"""The report of a fit, one page that needs nothing else: what is compared, its charts, and its sections."""
