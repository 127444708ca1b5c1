"""When which stage of which part trains."""
