"""What is measured on a live model, along an attack and on its own. One file each; the folder is the list."""
