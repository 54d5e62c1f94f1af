"""The paper's perceptual study (§4.1): the page that people look at, and what their sessions say."""
