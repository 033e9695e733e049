"""OpenAI's Responses API: basic text, function tools and formats, without anything that is kept."""
