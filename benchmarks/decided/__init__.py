"""What decided once between ways of doing a thing."""
