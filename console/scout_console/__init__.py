"""The screens: hub client, presenters, web console, terminal."""
