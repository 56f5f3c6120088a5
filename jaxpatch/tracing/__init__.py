"""How the parts play together: which components are sources and which pass on what others made."""
