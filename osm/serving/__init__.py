"""Interactive demos: a notebook widget and a web page that name regions of an image."""
