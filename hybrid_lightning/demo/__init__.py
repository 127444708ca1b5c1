"""Small real data, and pretrained encoders, that come as packages."""
