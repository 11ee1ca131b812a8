"""Claims and open questions of GDPO (arXiv 2412.20299)."""
