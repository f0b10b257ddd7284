"""Parts of the demo beyond the ordinary commands: a tower pretrained on the renderer's labels, and a summary."""
