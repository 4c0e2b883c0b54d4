"""The chat app's commands: one registry behind keys, slashes and the palette."""
