"""From a recipe to a proved artifact."""
