"""The page. The only part of the package that imports gradio; it holds no knowledge of how a picture is made."""
