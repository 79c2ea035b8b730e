"""Training data: the order of rows in an epoch and the loader that reads them."""
