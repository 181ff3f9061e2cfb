"""The database of demonstrations and rankings; the web page is in `textrl.feedback`."""
