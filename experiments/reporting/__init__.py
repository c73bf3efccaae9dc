"""How numbers become pages: provenance, tables, the runs that are reported, RESULTS.md."""
