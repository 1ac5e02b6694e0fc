"""OpenAI's Images API: generations, edits and models, with and without a stream of events."""
