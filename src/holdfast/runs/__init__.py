"""The runs behind the commands, composed of cells and stages."""
