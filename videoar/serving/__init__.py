"""Generation on request: an HTTP API in the form of the OpenAI videos API. Knows no Ray."""
