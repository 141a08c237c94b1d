"""What people touch: a folder of pictures named whole, a notebook, a page in the browser."""
