"""What a run found: collected from its directory, drawn, and written as one self-contained page."""
