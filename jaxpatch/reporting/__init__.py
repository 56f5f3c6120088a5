"""Shell: what a run found, written down: a table, arrays, figures, a manifest, and one self-contained page."""
