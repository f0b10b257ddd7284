"""What the demo needs beside the ordinary commands: a pretrained tower made from the renderer's labels."""
