"""One page about an artifact, or several side by side: what they are, how good and how fast."""
