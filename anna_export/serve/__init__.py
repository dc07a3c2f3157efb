"""An encoder behind HTTP, by the routes of OpenAI and of text-embeddings-inference."""
