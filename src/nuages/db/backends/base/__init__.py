"""Code that the wrappers and the drivers' connections of all our engines share."""
