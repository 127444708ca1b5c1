"""The report of runs: one HTML file that opens offline."""
