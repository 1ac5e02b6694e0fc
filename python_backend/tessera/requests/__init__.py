"""A request's inputs -> a checked request: numbers, texts, edits, ControlNets and their images."""
