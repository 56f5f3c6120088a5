"""Everything about models: one decoder, its families, checkpoints in and out, generation."""
