"""Whether DISAM will help, told before training: signals of a short trial, and a forecast of the gain from them."""
