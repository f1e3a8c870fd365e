"""What a command does, composed of cells and stages."""
