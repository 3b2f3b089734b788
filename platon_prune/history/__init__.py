"""What choices did."""
