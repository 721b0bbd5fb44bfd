"""The command line and what only it needs: tables in files, and baselines."""
