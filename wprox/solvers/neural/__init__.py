"""The proximal step by neural transport maps."""
