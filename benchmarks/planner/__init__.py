"""The planner beside other ways to size a fleet, in the digital twin."""
