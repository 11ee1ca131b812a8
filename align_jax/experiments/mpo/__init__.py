"""Claims and open questions of MPO (arXiv 2412.04628)."""
