"""The HTTP server, its web page, its Python client, and the picture of the notebook."""
