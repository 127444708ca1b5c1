"""How far pretrained parts move from where they started, and what pulls them back."""
