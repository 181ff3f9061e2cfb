"""The store of what people wrote and ranked, without the web page (`textrl.feedback`)."""
