"""Which rows meet in which step, their token ids, and the memory that takes."""
