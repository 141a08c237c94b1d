"""Interactive demos: a notebook widget and a web page that name image regions selected by the user."""
