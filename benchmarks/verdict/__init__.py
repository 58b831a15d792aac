"""What the verdict on DISAM is made of."""
