"""What attention layers have beside their matrices, and what a cut makes of it."""
