"""The console: a page of a frontend that shows the fleet as it is."""
