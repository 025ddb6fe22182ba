"""uvicorn's protocols with bounds, and the process around them."""
