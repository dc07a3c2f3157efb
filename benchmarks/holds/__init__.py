"""What must keep holding: time, memory, forecasts."""
