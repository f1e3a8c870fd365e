"""Parts that safeguards share: losses, streams of rows, adversaries and loops. None of them is a plug-in."""
